"""Entries that tasks want."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.masks import tall_mask
from mergers.methods.base import EntrywiseMethod, merge_blocks, weighted_entries
from mergers.updates import Update


@dataclass(frozen=True)
class TallMasks(EntrywiseMethod):
    """TALL-masks: a task wants the entries where |delta_i| > threshold * |total - delta_i|, total = sum_k c_k delta_k.

    `merge` gives the consensus: the total at the entries that at least ``agreement`` tasks want, and zero elsewhere;
    of fewer tasks, all must want an entry. `task_specific` gives one task's model: the total at the entries that it
    wants. Coefficients make the total, so they change the masks too.

    Paper: Wang et al., Localizing Task Information for Improved Model Merging and Compression, ICML 2024
    (arXiv 2405.07813).

    Attributes:
        threshold: lambda of the paper, 0 or more: the larger, the fewer entries a task wants.
        agreement: How many tasks must want an entry, from 1 on.
    """

    has_task_models: ClassVar[bool] = True

    threshold: float = 0.4
    agreement: int = 2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise SheetbendError(f"TallMasks threshold is {self.threshold}; give a number from 0 on")
        if isinstance(self.agreement, bool) or not isinstance(self.agreement, int) or self.agreement < 1:
            raise SheetbendError(f"TallMasks agreement is {self.agreement!r}; give a number of tasks, from 1 on")

    def merge_entries(self, values: Sequence[Tensor], coefficients: Sequence[float], survey: Any = None) -> Tensor:
        """Return the consensus of a block."""
        total = weighted_entries(values, coefficients)
        wanted = torch.zeros_like(total)
        for value in values:
            wanted += tall_mask(value, total, self.threshold)
        return total.mul_(wanted.ge_(min(self.agreement, len(values))))

    def task_specific(
        self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any, task: int
    ) -> Update:
        """Return the weighted sum at the entries that one task wants."""

        def own(values: Sequence[Tensor]) -> Tensor:
            total = weighted_entries(values, coefficients)
            return total.mul_(tall_mask(values[task], total, self.threshold))

        return merge_blocks(coordinates, own)
