"""Task singular vectors, made orthonormal over all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mergers.errors import SheetbendError
from mergers.functional.linalg import SVD, nearest_orthonormal
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
        parts = self.triplets(coordinates)
        U, Vh = torch.cat([svd.U for svd in parts], dim=1), torch.cat([svd.Vh for svd in parts])
        s = torch.cat([c * svd.s for c, svd in zip(coefficients, parts, strict=True)])
        return from_factors(U * s, Vh, coordinates)

    def triplets(self, coordinates: Sequence[Update]) -> list[SVD]:
        """Return what each task gives, k_i triplets in float64; the vectors of all tasks together are orthonormal."""
        size = min(coordinates[0].shape)
        kept = max(1, size // len(coordinates) if self.rank_ratio is None else int(self.rank_ratio * size))
        parts = [SVD(svd.U[:, :kept], svd.s[:kept], svd.Vh[:kept]) for svd in map(support, coordinates)]
        counts = [len(svd.s) for svd in parts]
        U = nearest_orthonormal(torch.cat([svd.U for svd in parts], dim=1)).split(counts, dim=1)
        V = nearest_orthonormal(torch.cat([svd.Vh for svd in parts]).T).split(counts, dim=1)
        return [SVD(u, svd.s, v.T) for u, svd, v in zip(U, parts, V, strict=True)]
