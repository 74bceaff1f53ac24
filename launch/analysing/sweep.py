"""Many merged models in few sweeps of the data."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from callbacks import MergeCallback, ResultsCallback
from lightning_modules import LoRATasks, Score, Variant
from lightning_modules.scores import headline_scores
from lightning_modules.variants import FINETUNED, PRETRAINED, finetuned, pretrained
from mergers import Adapter, SheetbendError
from mergers.preflight import available_memory

# Share of the free memory that merged weights may take.
MEMORY = 0.5

Job = TypeVar("Job")


class _Given(Callback):
    """Gives the model the variants of one sweep as it starts, and lets go of them after it."""

    def __init__(self) -> None:
        self.make: Callable[[], dict[str, Variant]] = dict

    def on_test_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Merge here, where the model is on its device."""
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

    @property
    def bytes_each(self) -> int:
        """What the weights of one merged model take, at most."""
        size = next(self.model.model.get_base_model().parameters()).element_size()
        return size * sum(math.prod(update.shape) for update in self.adapters[0].values())

    def room(self) -> int:
        """Return how many merged models memory holds at once, at least one."""
        device: Any = self.trainer.strategy.root_device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory() or 4e9
        return max(1, int(MEMORY * free / max(1, self.bytes_each)))

    def references(self) -> tuple[list[Score], dict[str, Score]]:
        """Return the scores of the pretrained and the finetuned weights, and by task what others are divided by.

        Raises:
            SheetbendError: the finetuned value of a task is not above 0.
        """
        scores = self._run(lambda: {PRETRAINED: pretrained(), FINETUNED: finetuned()})
        found = {score.task: score for score in headline_scores(scores) if score.variant == FINETUNED}
        for score in found.values():
            if score.value <= 0:
                raise SheetbendError(
                    f"task {score.task}: its finetuned {score.metric} is {score.value:g}, by which nothing can be "
                    "normalised; leave it out of data.tasks"
                )
        return scores, found

    def measure(self, jobs: Sequence[Job], variant_of: Callable[[Job], Variant]) -> list[tuple[Job, list[Score]]]:
        """Return each job with the scores of its variant, from as many sweeps as memory asks for."""
        found: list[tuple[Job, list[Score]]] = []
        room = self.room()
        for start in range(0, len(jobs), room):
            part = jobs[start : start + room]
            scores = self._run(lambda part=part: {str(n): variant_of(job) for n, job in enumerate(part)})
            found += [(job, [one for one in scores if one.variant == str(n)]) for n, job in enumerate(part)]
        return found

    def _run(self, make: Callable[[], dict[str, Variant]]) -> list[Score]:
        self._given.make = make
        verb = self.trainer.validate if self.split == "val" else self.trainer.test
        verb(self.model, datamodule=self.data, verbose=False)
        return self.model.scores()


def by_task(scores: Sequence[Score], metrics: Mapping[str, str]) -> dict[str, Score]:
    """Return the score of each task in its own metric.

    Args:
        scores: of one variant.
        metrics: of the tasks that are wanted.
    """
    found = {(score.task, score.metric): score for score in scores}
    return {task: found[task, metric] for task, metric in metrics.items()}
