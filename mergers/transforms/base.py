"""What a transform is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from torch import Tensor

from mergers.updates import ChangedUpdate, Update


class Transform(ABC):
    """What changes each task's coordinates before the method merges them."""

    #: Whether it acts on entries, so that its result has no low rank.
    entrywise: ClassVar[bool] = False

    #: Whether it acts on singular values, so that the coordinates must have those of the update.
    needs_norms: ClassVar[bool] = False

    @abstractmethod
    def transform(self, coordinates: Update, task: str, module: str) -> Update:
        """Return the changed coordinates of one task in one module.

        It may be called several times for one pair of task and module and returns the same values each time.
        """


class EntrywiseTransform(Transform):
    """A transform of entries, done block by block as they are read."""

    entrywise: ClassVar[bool] = True

    def transform(self, coordinates: Update, task: str, module: str) -> Update:
        """Return the coordinates, to be changed as they are read."""
        return ChangedUpdate(coordinates, partial(self.begin, coordinates, task, module))

    @abstractmethod
    def begin(self, coordinates: Update, task: str, module: str) -> Callable[[Tensor], Tensor]:
        """Return what changes the coordinates' consecutive blocks of rows, for one pass over them.

        Each pass gives the same values, whatever the size of the blocks.
        """
