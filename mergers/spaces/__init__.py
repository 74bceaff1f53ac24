"""Bases in which updates are merged; a class listed here is found by its name."""

from mergers.spaces.full import Full

__all__ = ["Full"]
