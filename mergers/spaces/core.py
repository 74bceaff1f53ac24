"""The space that aligns the factors of all tasks on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergers.functional.linalg import svd_of_tall, without_rounding
from mergers.spaces.base import Encoded, Space
from mergers.updates import LowRankUpdate, Update


@dataclass(frozen=True)
class Core(Space):
    """U_B^T delta_i V_A, with joint bases of the tasks' output and input spaces.

    U_B are the left singular vectors of [s_1 B_1 | ... | s_T B_T], s_i the LoRA scale, and V_A the right singular
    vectors of the stacked A_i. With R = sum(r_i), coordinates are (min(out, R), min(in, R)); merged coordinates C
    decode to U_B C V_A^T, a low-rank update whatever the method does to their entries.

    Paper: Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, NeurIPS 2025
    (arXiv 2509.17786).
    """

    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Return the coordinates of each task, factored."""
        factors = [update.factors() for update in updates]
        # The coordinates of the factors in their own singular vectors are diag(s) V^T.
        left = svd_of_tall(torch.cat([B for B, _ in factors], dim=1))
        right = svd_of_tall(torch.cat([A for _, A in factors]).T)
        ranks = [A.shape[0] for _, A in factors]
        Bs, As = (
            without_rounding(svd.s[:, None] * svd.Vh, float(svd.s.max()) if len(svd.s) else 0.0)
            .float()
            .split(ranks, dim=1)
            for svd in (left, right)
        )
        coordinates: list[Update] = [LowRankUpdate(A=A.T, B=B) for A, B in zip(As, Bs, strict=True)]
        return Encoded(coordinates, left.U.float(), right.U.T.float())

    def sizes(self, rows: int, columns: int, ranks: int) -> tuple[int, int]:
        """Return (min(out, R), min(in, R))."""
        return min(rows, ranks), min(columns, ranks)

    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return True: rank sum(r_i) at most."""
        return True
