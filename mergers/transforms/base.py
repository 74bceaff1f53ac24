"""What a transform is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from mergers.updates import Update


class Transform(ABC):
    """What changes each task's coordinates before the method merges them."""

    #: Whether it acts on entries, so that its result has no low rank.
    entrywise: ClassVar[bool] = False

    #: Whether it acts on singular values, so that the coordinates must have those of the update.
    spectral: ClassVar[bool] = False

    @abstractmethod
    def transform(self, coordinates: Update, task: str, module: str) -> Update:
        """Return the changed coordinates of one task in one module.

        It may be called several times for one pair of task and module and returns the same values each time.
        """
