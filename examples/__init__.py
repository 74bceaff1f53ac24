"""Worked examples; a part of the repository, not installed."""
