"""What a space is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mergers.updates import LowRankUpdate, Update


@dataclass(frozen=True)
class Encoded:
    """One module's updates, written in a space: update_i = left @ coordinates_i @ right.

    Attributes:
        coordinates: One a task, all of one shape (p, q). They are updates themselves: factored
            where the space allows, so that nothing dense is formed before a method needs entries.
        left: (out, p) float32, or None for the identity.
        right: (q, in) float32, or None for the identity.
    """

    coordinates: list[Update]
    left: Tensor | None = None
    right: Tensor | None = None

    def decode(self, merged: Update) -> Update:
        """Return left @ merged @ right, low-rank if there is either."""
        left, right = self.left, self.right
        if left is None and right is None:
            return merged
        rows, columns = merged.shape
        limit = min([rows] * (left is not None) + [columns] * (right is not None))
        if isinstance(merged, LowRankUpdate) and merged.rank < limit:
            B, A = merged.factors()
        elif right is None or (left is not None and rows <= columns):
            return LowRankUpdate(B=left, A=merged.dense() if right is None else merged.dense() @ right)
        else:
            B, A = merged.dense(), None
            return LowRankUpdate(B=B if left is None else left @ B, A=right)
        return LowRankUpdate(B=B if left is None else left @ B, A=A if right is None else A @ right)


class Space(ABC):
    """A basis in which the updates of all tasks are written before they are merged."""

    #: Whether an alignment takes work that is worth keeping.
    costly: bool = True

    @property
    def keeps_singular_values(self) -> bool:
        """Whether a task's coordinates have the singular values of its update."""
        return True

    @abstractmethod
    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Write the updates of one weight matrix, one a task, in this space."""

    def sizes(self, rows: int, columns: int, ranks: int) -> tuple[int, int]:
        """Return the largest shape that coordinates can have; for estimates of time and memory.

        Args:
            rows: Of the weight.
            columns: Of the weight.
            ranks: Sum over the tasks.
        """
        return rows, columns

    @abstractmethod
    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return whether merged low-rank updates come out low-rank.

        Args:
            dense_coordinates: The transforms or the method give coordinates without low-rank structure.
        """
