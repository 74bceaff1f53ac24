"""Many merged models in few sweeps of the data: for searches and analyses."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from callbacks import MergeCallback, ResultsCallback
from lightning_modules import LoRATasks, Score, Variant
from lightning_modules.footprint import merged_bytes, merged_numbers
from lightning_modules.variants import FINETUNED, PRETRAINED, finetuned, pretrained
from mergers import Adapter, Merger
from mergers.memory import available_memory

# Share of the free memory that merged weights may take.
MEMORY = 0.5

Job = TypeVar("Job")


class _Given(Callback):
    """Gives the model the variants of one sweep as it starts, and lets go of them after it."""

    def __init__(self) -> None:
        self.make: Callable[[], dict[str, Variant]] = dict

    def on_test_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Merge here, where the model is on its device, and test these alone."""
        pl_module.variants = self.make()

    def on_test_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Let go of the merged weights."""
        pl_module.variants = {name: variant.released() for name, variant in pl_module.variants.items()}

    on_validation_start, on_validation_end = on_test_start, on_test_end


class Sweeps:
    """Runs the data of one split through whatever is given.

    Args:
        trainer: tests; callbacks that merge or show results are set aside until `restore`.
        model: built.
        data: has been set up.
        split: whose data.
    """

    def __init__(self, trainer: Trainer, model: LoRATasks, data: LightningDataModule, split: Literal["val", "test"]):
        self.trainer, self.model, self.data, self.split = trainer, model, data, split
        self.adapters: list[Adapter] = model.adapters()
        self._given, self._before = _Given(), list(trainer.callbacks)
        kept = [one for one in self._before if not isinstance(one, MergeCallback | ResultsCallback)]
        trainer.callbacks[:] = [self._given, *kept]

    def restore(self) -> None:
        """Give the trainer its callbacks back."""
        self.trainer.callbacks[:] = self._before

    def bytes_of(self, merger: Merger) -> int:
        """Return what the weights of one merge of all adapters take while they are tested."""
        return merged_bytes(self.model, merger, self.adapters)

    def room(self, bytes_each: int) -> int:
        """Return how many merges of so many bytes memory holds at once, at least one."""
        device: Any = self.trainer.strategy.root_device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory() or 4e9
        # One is there in float32 until it has been added to the weights.
        passing = 4 * merged_numbers(self.adapters, branches=False)
        return max(1, int((MEMORY * free - passing) / max(1, bytes_each)))

    def references(self) -> list[Score]:
        """Return the scores of the pretrained and the finetuned weights."""
        return self._run(lambda: {PRETRAINED: pretrained(), FINETUNED: finetuned()})

    def measure(
        self, jobs: Sequence[Job], variant_of: Callable[[Job], Variant | None], room: int
    ) -> list[tuple[Job, list[Score]]]:
        """Return each job with the scores of its variant.

        Args:
            jobs: any objects.
            variant_of: makes the variant of one as its sweep begins; None: it has none, and so no scores.
            room: how many share a sweep.
        """
        found: list[tuple[Job, list[Score]]] = []
        for start in range(0, len(jobs), room):
            part = jobs[start : start + room]
            scores = self._run(lambda part=part: _named({str(n): variant_of(job) for n, job in enumerate(part)}))
            found += [(job, [one for one in scores if one.variant == str(n)]) for n, job in enumerate(part)]
        return found

    def _run(self, make: Callable[[], dict[str, Variant]]) -> list[Score]:
        self._given.make = make
        verb = self.trainer.validate if self.split == "val" else self.trainer.test
        verb(self.model, datamodule=self.data, verbose=False)
        return self.model.scores()


def _named(variants: dict[str, Variant | None]) -> dict[str, Variant]:
    return {name: variant for name, variant in variants.items() if variant is not None}
