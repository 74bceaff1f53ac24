"""The directions of each task in one weight, of which masks choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mergers.functional.linalg import SVD, nearest_orthonormal, numerical_rank, svd_of_concatenation
from mergers.methods.base import CUTOFF, common_frame, support
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
            return self._whitened(updates)
        if self.start == "cart":
            return self._from_mean(updates)
        return Encoded([_directions(update.svd()) for update in updates])

    def _from_mean(self, updates: Sequence[Update]) -> Encoded:
        frame = common_frame(updates)
        mean = sum(frame.cores) / len(frame.cores)
        parts = [SVD(*torch.linalg.svd(core - mean, full_matrices=False)) for core in frame.cores]
        left, right = (None if part is None else part.float() for part in (frame.left, frame.right))
        return Encoded([*map(_directions, parts), DenseUpdate(mean.float())], left, right)

    def _whitened(self, updates: Sequence[Update]) -> Encoded:
        kept = max(1, min(updates[0].shape) // len(updates))
        parts = [SVD(svd.U[:, :kept], svd.s[:kept], svd.Vh[:kept]) for svd in map(support, updates)]
        counts = [len(svd.s) for svd in parts]
        U = nearest_orthonormal(torch.cat([svd.U for svd in parts], dim=1)).split(counts, dim=1)
        V = nearest_orthonormal(torch.cat([svd.Vh for svd in parts]).T).T.split(counts)
        return Encoded([_directions(SVD(u, svd.s, v)) for u, svd, v in zip(U, parts, V, strict=True)])

    def _shared(self, updates: Sequence[Update]) -> Encoded:
        factors = [update.factors() for update in updates]
        svd = svd_of_concatenation(factors)
        rank = numerical_rank(svd.s, CUTOFF)
        widths = [right.shape[0] for _, right in svd.V]
        rows = []  # the coordinates diag(s) V_i, over the stacked right factors of all tasks
        for index, (left, _) in enumerate(svd.V):
            whole = left.new_zeros(rank, sum(widths))
            whole[:, sum(widths[:index]) : sum(widths[: index + 1])] = svd.s[:rank, None] * left[:rank]
            rows.append(whole)
        mean = sum(rows) / len(rows)
        if self.start == "cart":
            rows = [row - mean for row in rows]
        coordinates: list[Update] = [LowRankUpdate(A=row.float(), B=torch.eye(rank, device=row.device)) for row in rows]
        if self.start == "cart":
            coordinates.append(DenseUpdate(mean.float()))
        return Encoded(coordinates, svd.U[:, :rank].float(), torch.cat([right for _, right in svd.V]).float())


def _directions(svd: SVD) -> LowRankUpdate:
    """Return the triplets in float32, with s in B."""
    return LowRankUpdate(A=svd.Vh.float().contiguous(), B=(svd.U * svd.s).float())
