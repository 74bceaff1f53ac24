"""The space that aligns the updates of all tasks by a joint SVD."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mergers.errors import SheetbendError
from mergers.functional.linalg import numerical_rank, svd_of_concatenation, without_rounding
from mergers.spaces.base import Encoded, Space
from mergers.updates import LowRankUpdate, Update

Side = Literal["inputs", "outputs"]


@dataclass(frozen=True)
class KnOTS(Space):
    """U of the SVD U diag(s) [V_1 | ... | V_T] of [delta_1 | ... | delta_T].

    Task i has coordinates diag(s) V_i. Merged coordinates C, (k, in), decode to U C: a low-rank
    update whatever the method does to their entries. Concatenated over outputs, the same is done to the
    transposed updates: coordinates U_i diag(s), (out, k), decode to C V^T.

    Paper: Stoica et al., Model merging with SVD to tie the KnOTS, ICLR 2025 (arXiv 2410.19735).

    Attributes:
        scale_by_singular_values: Coordinates are diag(s) V_i, as in the paper's code; else V_i, and diag(s)
            goes with U. This changes what TIES trims.
        cutoff: Singular values up to this do not count towards the rank k.
        relative_cutoff: The cutoff is a fraction of the module's largest singular value; else it is
            absolute (the paper's code: 1e-5).
        concatenate: Updates stand side by side over their "inputs", as in the paper, or above each other over
            their "outputs".
    """

    scale_by_singular_values: bool = True
    cutoff: float = 1e-6
    relative_cutoff: bool = True
    concatenate: Side = "inputs"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cutoff) and self.cutoff >= 0 and (self.cutoff < 1 or not self.relative_cutoff)):
            raise SheetbendError(
                f"KnOTS cutoff is {self.cutoff}; give a number from 0 on, below 1 if relative to the largest"
            )
        if self.concatenate not in get_args(Side):
            raise SheetbendError(f"KnOTS concatenate is {self.concatenate!r}; known: {', '.join(get_args(Side))}")

    @property
    def keeps_singular_values(self) -> bool:
        """Whether diag(s) is in the coordinates: those of V_i are mostly ones."""
        return self.scale_by_singular_values

    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Return the coordinates of each task, factored: (k, in), or (out, k) over outputs."""
        factors = [update.factors() for update in updates]
        over_inputs = self.concatenate == "inputs"
        svd = svd_of_concatenation(factors if over_inputs else [(A.T, B.T) for B, A in factors])
        rank = numerical_rank(svd.s, self.cutoff, self.relative_cutoff)
        s, U = svd.s[:rank], svd.U[:, :rank]
        largest = float(s.max()) if rank else 0.0
        lefts = [without_rounding(s[:, None] * left[:rank], largest) for left, _ in svd.V]
        if not self.scale_by_singular_values:
            U, lefts = U * s, [left / s[:, None] for left in lefts]
        U = U.float()
        V = [(left.float(), right.float()) for left, (_, right) in zip(lefts, svd.V, strict=True)]
        if over_inputs:
            return Encoded([LowRankUpdate(A=right, B=left) for left, right in V], left=U)
        return Encoded([LowRankUpdate(A=left.T, B=right.T) for left, right in V], right=U.T)

    def sizes(self, rows: int, columns: int, ranks: int) -> tuple[int, int]:
        """Return (min(out, R), in), or (out, min(in, R)) over outputs."""
        return (min(rows, ranks), columns) if self.concatenate == "inputs" else (rows, min(columns, ranks))

    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return True: rank k = sum(r_i) at most."""
        return True
