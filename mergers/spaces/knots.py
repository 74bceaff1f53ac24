"""The space that aligns the updates of all tasks by a joint SVD."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergers.errors import SheetbendError
from mergers.functional.linalg import numerical_rank, svd_of_concatenation
from mergers.spaces.base import Encoded, Space
from mergers.updates import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class KnOTS(Space):
    """U of the SVD U diag(s) [V_1 | ... | V_T] of [delta_1 | ... | delta_T].

    Task i has coordinates diag(s) V_i. Merged coordinates C, (k, in), decode to U C: a low-rank
    update whatever the method does to their entries.

    Paper: Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025 (arXiv 2410.19735).

    Attributes:
        scale_by_singular_values: Coordinates are diag(s) V_i, as in the paper's code; else V_i, and diag(s)
            goes with U. This changes what TIES trims.
        cutoff: Singular values up to this do not count towards the rank k.
        relative_cutoff: The cutoff is a fraction of the module's largest singular value; else it is
            absolute (the paper's code: 1e-5).
    """

    scale_by_singular_values: bool = True
    cutoff: float = 1e-6
    relative_cutoff: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cutoff) and self.cutoff >= 0 and (self.cutoff < 1 or not self.relative_cutoff)):
            raise SheetbendError(
                f"KnOTS cutoff is {self.cutoff}; give a number from 0 on, below 1 if relative to the largest"
            )

    @property
    def keeps_singular_values(self) -> bool:
        """Whether diag(s) is in the coordinates: those of V_i are mostly ones."""
        return self.scale_by_singular_values

    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Return the coordinates (k, in) of each task, factored where its update is."""
        shape = updates[0].shape
        svd = svd_of_concatenation([_factors(update) for update in updates])
        rank = numerical_rank(svd.s, self.cutoff, self.relative_cutoff)
        s = svd.s[:rank]
        U = svd.U[:, :rank]
        if not self.scale_by_singular_values:
            U, s = U * s, torch.ones_like(s)
        basis = U.float()
        coordinates: list[Update] = [
            LowRankUpdate(A=right.float(), B=(s[:, None] * left[:rank]).float()) for left, right in svd.V
        ]

        def decode(merged: Update) -> Update:
            if isinstance(merged, LowRankUpdate) and merged.rank < rank:
                left, right = merged.factors()
                update = LowRankUpdate(A=right, B=basis @ left)
            else:
                update = LowRankUpdate(A=merged.dense(), B=basis)
            return update if len(shape) == 2 else DenseUpdate(update.dense().reshape(shape))

        return Encoded(coordinates, decode)

    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return True: rank k = sum(r_i) at most."""
        return True


def _factors(update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the update as a product: a dense one with the identity, a vector as a column."""
    if isinstance(update, LowRankUpdate):
        return update.factors()
    delta = update.dense()
    delta = delta.reshape(delta.shape[0], -1)
    out_features, in_features = delta.shape
    eye = torch.eye(min(delta.shape), device=delta.device)
    return (eye, delta) if out_features <= in_features else (delta, eye)
