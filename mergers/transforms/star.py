"""Spectral truncation."""

from dataclasses import dataclass
from typing import ClassVar

from mergers.errors import SheetbendError
from mergers.functional.spectral import truncate_and_rescale
from mergers.transforms.base import Transform
from mergers.updates import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Star(Transform):
    """STAR: keeps each task's largest singular values and rescales them to the same nuclear norm.

    Followed by `Mean`, this is the paper's STAR. It stays factored.

    Paper: Lee et al., STAR: Spectral Truncation and Rescale for Model Merging, NAACL 2025 (arXiv 2502.10339).

    Attributes:
        eta: Percentage of the nuclear norm that the kept singular values hold at least, in (0, 100].
    """

    needs_norms: ClassVar[bool] = True

    eta: float = 40.0

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 100:
            raise SheetbendError(f"Star eta is {self.eta}; give a percentage in (0, 100]")

    def transform(self, coordinates: Update, task: str, module: str) -> Update:
        """Return the truncated update, low-rank; a vector has one singular value and stays as it is."""
        if len(coordinates.shape) != 2:
            return coordinates
        U, s, Vh = truncate_and_rescale(coordinates.svd(), self.eta)
        truncated = LowRankUpdate(A=Vh.float(), B=(U * s).float())
        return truncated if isinstance(coordinates, LowRankUpdate) else DenseUpdate(truncated.dense())
