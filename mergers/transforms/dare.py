"""Random dropping of entries."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.sparsify import drop_and_rescale
from mergers.seeding import derive_generator
from mergers.transforms.base import EntrywiseTransform
from mergers.updates import Update


@dataclass(frozen=True)
class Dare(EntrywiseTransform):
    """DARE: drops entries at random and rescales the others by 1 / (1 - drop_rate).

    Each (seed, task, module) has a random stream of its own, so that masks depend neither on the order of the
    tasks nor on devices nor, in the full space, on what else is merged.

    Paper: Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099).

    Attributes:
        drop_rate: Probability that an entry is dropped, in [0, 1).
        seed: Seed of the masks.
    """

    drop_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate < 1:
            raise SheetbendError(f"Dare drop_rate is {self.drop_rate}; give a fraction in [0, 1)")

    def begin(self, coordinates: Update, task: str, module: str) -> Callable[[Tensor], Tensor]:
        """Return what masks and rescales the next block, with the stream of this task and module."""
        generator = derive_generator(self.seed, task, module)
        return lambda block: drop_and_rescale(block, self.drop_rate, generator)
