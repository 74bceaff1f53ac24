"""What a finish is."""

from abc import ABC, abstractmethod

from mergers.updates import Update


class Finish(ABC):
    """What changes the merged coordinates before they are decoded.

    It acts on singular values, so the space must keep those of the updates.
    """

    @abstractmethod
    def finish(self, merged: Update) -> Update:
        """Return the changed coordinates of one module, low-rank where they were."""
