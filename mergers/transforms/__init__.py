"""What changes a task's coordinates before merging; a class listed here is found by its name."""

from mergers.transforms.dare import Dare
from mergers.transforms.star import Star

__all__ = ["Dare", "Star"]
