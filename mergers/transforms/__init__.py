"""What changes a task's coordinates before merging; a class listed here is found by its name."""

from mergers.transforms.breadcrumbs import Breadcrumbs
from mergers.transforms.dare import Dare
from mergers.transforms.della import Della
from mergers.transforms.star import Star

__all__ = ["Breadcrumbs", "Dare", "Della", "Star"]
