"""Random dropping of entries."""

from dataclasses import dataclass
from typing import ClassVar

from mergers.errors import SheetbendError
from mergers.functional.sparsify import drop_and_rescale
from mergers.seeding import derive_generator
from mergers.transforms.base import Transform
from mergers.updates import DenseUpdate, Update


@dataclass(frozen=True)
class Dare(Transform):
    """DARE: drops entries at random and rescales the others by 1 / (1 - drop_rate).

    Each (seed, task, module) has a random stream of its own, so that masks depend neither on the order of the
    tasks nor on devices nor, in the full space, on what else is merged.

    Paper: Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099).

    Attributes:
        drop_rate: Probability that an entry is dropped, in [0, 1).
        seed: Seed of the masks.
    """

    entrywise: ClassVar[bool] = True

    drop_rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate < 1:
            raise SheetbendError(f"Dare drop_rate is {self.drop_rate}; give a fraction in [0, 1)")

    def transform(self, coordinates: Update, task: str, module: str) -> Update:
        """Return the masked and rescaled entries."""
        generator = derive_generator(self.seed, task, module)
        return DenseUpdate(drop_and_rescale(coordinates.dense(), self.drop_rate, generator))
