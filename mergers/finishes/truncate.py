"""The leading directions alone."""

from dataclasses import dataclass

from mergers.finishes.base import Finish
from mergers.output.truncation import require_rank, truncate
from mergers.updates import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Truncate(Finish):
    """The largest singular values of the merged update, the others zero: the best approximation of a rank.

    Exact for low-rank updates; dense ones are projected on leading directions that are found by iteration (see
    `mergers.functional.linalg.truncated_svd`). As saving the merge with ``rank=``, but a setting of the merge; a dense
    update stays dense, so that an adapter of it still has to be saved with that rank.

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
