"""What a space is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mergers.updates import Update


@dataclass(frozen=True)
class Encoded:
    """One module's updates, written in a space.

    Attributes:
        coordinates: One a task, all of one shape. They are updates themselves: factored
            where the space allows, so that nothing dense is formed before a method needs entries.
        decode: Maps coordinates back to an update of the module.
    """

    coordinates: list[Update]
    decode: Callable[[Update], Update]


class Space(ABC):
    """A basis in which the updates of all tasks are written before they are merged."""

    @property
    def keeps_singular_values(self) -> bool:
        """Whether a task's coordinates have the singular values of its update."""
        return True

    @abstractmethod
    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Write the updates of one module, one a task, in this space."""

    @abstractmethod
    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return whether merged low-rank updates come out low-rank.

        Args:
            dense_coordinates: The transforms or the method give coordinates without low-rank structure.
        """
