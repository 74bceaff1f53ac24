"""Bases in which updates are merged; a class listed here is found by its name."""

from mergers.spaces.core import Core
from mergers.spaces.full import Full
from mergers.spaces.knots import KnOTS

__all__ = ["Core", "Full", "KnOTS"]
