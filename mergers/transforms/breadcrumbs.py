"""Neither outliers nor noise."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.masks import up_to
from mergers.functional.selection import select_magnitudes
from mergers.methods.base import blocks_of
from mergers.transforms.base import EntrywiseTransform
from mergers.updates import Update

_STEP = 4  # every fourth entry of every fourth row is looked at to guess where the cuts are


@dataclass(frozen=True)
class Breadcrumbs(EntrywiseTransform):
    """Model Breadcrumbs: drops the smallest entries of each module, and the largest ones too.

    Of n entries, floor(beta * n) of the smallest magnitudes and floor(gamma * n) of the largest become zero. Of equal
    magnitudes, the first in order of rows counts as the smallest. The kept entries are not rescaled. mergekit's
    ``density`` is 1 - beta - gamma, and its ``gamma`` is gamma. Followed by `TaskArithmetic`, this is the paper's
    method.

    Paper: Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, ECCV 2024
    (arXiv 2312.06795).

    Attributes:
        beta: Fraction of the entries, the smallest ones, that is dropped, in [0, 1).
        gamma: Fraction of the entries, the largest ones, that is dropped, in [0, 1 - beta).
    """

    beta: float = 0.85
    gamma: float = 0.007

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise SheetbendError(f"Breadcrumbs beta is {self.beta}; give a fraction in [0, 1)")
        if not 0 <= self.gamma < 1 - self.beta:
            raise SheetbendError(
                f"Breadcrumbs gamma is {self.gamma}; give a fraction in [0, 1 - beta), to leave entries to keep"
            )

    def begin(self, coordinates: Update, task: str, module: str) -> Callable[[Tensor], Tensor]:
        """Return what drops entries of the next block; where the cuts are takes a pass or two over all of them."""

        def ranks(counts: Sequence[int]) -> list[int]:
            smallest, largest = int(self.beta * counts[0]), int(self.gamma * counts[1])
            return [max(1, smallest), max(1, counts[1] - largest)]

        small, large = select_magnitudes(
            lambda function: [function([blocks_of(coordinates), blocks_of(coordinates)])],
            ranks,
            lambda function: [function([[coordinates.sample(_STEP)]] * 2)],
        )
        drops_small = int(self.beta * math.prod(coordinates.shape)) > 0
        seen_small = seen_large = 0

        def change(block: Tensor) -> Tensor:
            nonlocal seen_small, seen_large
            block, seen_large = up_to(block, large, seen_large)
            if drops_small:
                dropped, seen_small = up_to(block, small, seen_small)
                block = block - dropped
            return block

        return change
