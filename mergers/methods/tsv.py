"""Task singular vectors, made orthonormal over all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergers.errors import SheetbendError
from mergers.functional.linalg import nearest_orthonormal
from mergers.methods.base import SpectralMethod, from_factors, support
from mergers.updates import Update


@dataclass(frozen=True)
class TSV(SpectralMethod):
    """TSV-M: each task's largest singular triplets, with the vectors of all tasks brought to orthonormality.

    U = [U_1 | ... | U_T] and V likewise are replaced by the matrices with orthonormal columns nearest to them; the
    result is U diag(c_1 s_1, ..., c_T s_T) V^T, of rank sum(k_i). A task gives k = floor(min(shape) / T) triplets, at
    least one, and never more than its rank: directions beyond it would be arbitrary. The shape is that of the
    coordinates, so k differs between spaces. Vectors are averaged.

    Paper: Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv 2412.00081).

    Attributes:
        rank_ratio: Fraction of min(shape) that a task keeps, in (0, 1], in place of 1 / T.
    """

    rank_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.rank_ratio is not None and not 0 < self.rank_ratio <= 1:
            raise SheetbendError(f"TSV rank_ratio is {self.rank_ratio}; give a fraction in (0, 1], or none for 1 / T")

    def merge_matrices(self, coordinates: Sequence[Update], coefficients: Sequence[float]) -> Update:
        """Return the merged matrix, of rank sum(k_i)."""
        size = min(coordinates[0].shape)
        kept = max(1, size // len(coordinates) if self.rank_ratio is None else int(self.rank_ratio * size))
        triplets = [support(update) for update in coordinates]
        U = nearest_orthonormal(torch.cat([svd.U[:, :kept] for svd in triplets], dim=1))
        V = nearest_orthonormal(torch.cat([svd.Vh[:kept] for svd in triplets]).T)
        s = torch.cat([c * svd.s[:kept] for c, svd in zip(coefficients, triplets, strict=True)])
        return from_factors(U * s, V.T, coordinates)
