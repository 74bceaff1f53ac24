"""The leading directions alone."""

from dataclasses import dataclass

from mergers.finishes.base import Finish
from mergers.output.truncation import require_rank, truncate
from mergers.updates import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Truncate(Finish):
    """The best approximation of a rank: the largest singular values of the merged update, the others zero.

    The same as saving the merge with ``rank=``, but for its place among the settings of a merge.

    Attributes:
        rank: How many singular values are kept.
    """

    rank: int = 16

    def __post_init__(self) -> None:
        require_rank(self.rank)

    def finish(self, merged: Update) -> Update:
        """Return the approximation; a vector stays as it is."""
        if len(merged.shape) != 2:
            return merged
        kept = truncate(merged, self.rank).update
        return kept if isinstance(merged, LowRankUpdate) else DenseUpdate(kept.dense())
