"""What a finish is."""

from abc import ABC, abstractmethod
from typing import ClassVar

from mergers.updates import Update


class Finish(ABC):
    """What changes the merged coordinates before they are decoded."""

    #: Whether it needs singular values or norms, so that the coordinates must have those of the update.
    needs_norms: ClassVar[bool] = True

    @abstractmethod
    def finish(self, merged: Update) -> Update:
        """Return the changed coordinates of one module, low-rank where they were."""
