"""The directions of each task in one weight, of which masks choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mergers.functional.linalg import SVD
from mergers.methods import TSV
from mergers.methods.base import common_frame
from mergers.spaces import KnOTS
from mergers.spaces.base import Encoded
from mergers.updates import DenseUpdate, LowRankUpdate, Update

Start = Literal["task_arithmetic", "cart", "tsv"]
SpaceName = Literal["full", "knots"]


@dataclass(frozen=True)
class Decomposition:
    """Writes the updates of one weight as sums of directions, in the way of a space, so that the cache can keep them.

    The coordinates of task i are `LowRankUpdate`s whose columns of B and rows of A are its directions, the largest
    first. B carries the singular values. Where the mean of the updates is the origin, it follows as one more
    coordinate.

    Attributes:
        start: ``task_arithmetic``: the SVD of each update. ``cart``: that of each update minus their mean. ``tsv``: the
            largest min(out, in) / T of the first, with the vectors of all tasks brought to orthonormality as in TSV-M.
        space: ``full``, or ``knots``: all tasks share the columns of U in KnOTS space, and task i's direction j is
            U_j times row j of its coordinates.
    """

    start: Start
    space: SpaceName = "full"

    #: Whether a decomposition takes work that is worth keeping.
    costly: ClassVar[bool] = True

    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Return the directions of each task, and for ``cart`` the mean after them."""
        if self.space == "knots":
            return self._shared(updates)
        if self.start == "tsv":
            return Encoded([_directions(svd) for svd in TSV().triplets(updates)])
        if self.start == "cart":
            return self._from_mean(updates)
        return Encoded([_directions(update.svd()) for update in updates])

    def _from_mean(self, updates: Sequence[Update]) -> Encoded:
        frame = common_frame(updates)
        mean = sum(frame.cores) / len(frame.cores)
        parts = [SVD(*torch.linalg.svd(core - mean, full_matrices=False)) for core in frame.cores]
        left, right = (None if part is None else part.float() for part in (frame.left, frame.right))
        return Encoded([*map(_directions, parts), DenseUpdate(mean.float())], left, right)

    def _shared(self, updates: Sequence[Update]) -> Encoded:
        knots = KnOTS().encode(updates)
        factors = [coordinates.factors() for coordinates in knots.coordinates]
        # Over the stacked right factors of all tasks, the coordinates of each stand in columns of their own.
        rows = list(torch.block_diag(*(B for B, _ in factors)).chunk(len(factors)))
        right = torch.cat([A for _, A in factors])
        eye = torch.eye(len(rows[0]), device=right.device)
        if self.start != "cart":
            return Encoded([LowRankUpdate(A=row, B=eye) for row in rows], knots.left, right)
        mean = sum(rows) / len(rows)
        return Encoded([*(LowRankUpdate(A=row - mean, B=eye) for row in rows), DenseUpdate(mean)], knots.left, right)


def _directions(svd: SVD) -> LowRankUpdate:
    """Return the triplets in float32, with s in B."""
    return LowRankUpdate(A=svd.Vh.float().contiguous(), B=(svd.U * svd.s).float())
