"""One flat spectrum."""

from dataclasses import dataclass

from mergers.errors import SheetbendError
from mergers.finishes.base import Finish
from mergers.functional.spectral import flatten_spectrum
from mergers.updates import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Iso(Finish):
    """Iso-C: every singular value of the merged update becomes their mean.

    After `TaskArithmetic` this is the paper's Iso-C. Only the directions that the merged update has take part: with
    the full space of a low-rank sum, the others would be filled with arbitrary vectors.

    Paper: Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025 (arXiv 2502.04959).

    Attributes:
        cutoff: Singular values up to this fraction of the largest count as zero.
    """

    cutoff: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff < 1:
            raise SheetbendError(
                f"Iso cutoff is {self.cutoff}; give a fraction of the largest singular value, in [0, 1)"
            )

    def finish(self, merged: Update) -> Update:
        """Return U (mean of s) V^T; a vector has one singular value and stays as it is."""
        if len(merged.shape) != 2:
            return merged
        U, s, Vh = flatten_spectrum(merged.svd(), self.cutoff)
        flat = LowRankUpdate(A=Vh.float(), B=(U * s).float())
        return flat if isinstance(merged, LowRankUpdate) else DenseUpdate(flat.dense())
