"""Random dropping that spares large entries."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.masks import relative_ranks
from mergers.functional.sparsify import drop_and_rescale
from mergers.seeding import derive_generator
from mergers.transforms.base import EntrywiseTransform
from mergers.updates import Update


@dataclass(frozen=True)
class Della(EntrywiseTransform):
    """DELLA's MagPrune: drops entries at random, small ones more often, and rescales each to the same expectation.

    Within each row, the probability p of being dropped falls evenly with the rank by magnitude, from drop_rate + window
    / 2 for the smallest to drop_rate - window / 2 for the largest; a kept entry is multiplied by 1 / (1 - p). Of equal
    magnitudes the first counts as the smallest. A vector is one row. Random streams are those of `Dare`. mergekit's
    ``density`` is 1 - drop_rate, and its ``epsilon`` is window / 2.

    Followed by `Ties` of density 1, this is the paper's DELLA-Merging.

    Paper: Deep et al., DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling
    (arXiv 2406.11617).

    Attributes:
        drop_rate: Mean probability that an entry is dropped, in [0, 1).
        window: Width of the range of the probabilities (the paper's epsilon), 0 or more; it must stay in [0, 1).
        seed: Seed of the masks.
    """

    drop_rate: float
    window: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate < 1:
            raise SheetbendError(f"Della drop_rate is {self.drop_rate}; give a fraction in [0, 1)")
        if not 0 <= self.window / 2 <= self.drop_rate < 1 - self.window / 2:
            raise SheetbendError(
                f"Della window is {self.window}, which takes drop rates around {self.drop_rate} out of [0, 1); "
                "give a smaller one"
            )

    def begin(self, coordinates: Update, task: str, module: str) -> Callable[[Tensor], Tensor]:
        """Return what masks and rescales the next block, with the stream of this task and module."""
        generator = derive_generator(self.seed, task, module)

        def rates(values: Tensor) -> Tensor:
            return relative_ranks(values).mul_(-self.window).add_(self.drop_rate + self.window / 2).cpu()

        if len(coordinates.shape) == 2:
            return lambda block: drop_and_rescale(block, rates(block), generator)

        waiting = rates(coordinates.dense())  # one row, which comes in several blocks

        def change(block: Tensor) -> Tensor:
            nonlocal waiting
            here, waiting = waiting[: len(block)], waiting[len(block) :]
            return drop_and_rescale(block, here, generator)

        return change
