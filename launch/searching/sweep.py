"""One sweep of the validation data with many candidates."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from callbacks import MergeCallback, ResultsCallback
from launch.searching.records import Candidate, Record
from lightning_modules import LoRATasks, Score, Variant
from lightning_modules.variants import FINETUNED, PRETRAINED, finetuned, pretrained
from mergers import Adapter, Merger
from mergers.cache import AlignmentCache
from mergers.preflight import available_memory

# Share of the free memory that merged weights may take.
MEMORY = 0.5


class Candidates(Callback):
    """Gives the model candidates as its variants, and lets go of them after the sweep."""

    def __init__(self) -> None:
        self.variants: dict[str, Variant] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Test these alone."""
        pl_module.variants = self.variants

    def on_validation_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Let go of the merged weights."""
        pl_module.variants = {name: variant.released() for name, variant in pl_module.variants.items()}
        self.variants = {}


class Sweeper:
    """Measures candidates of one run on its validation data.

    Args:
        trainer: validates; callbacks that merge or show results are set aside.
        model: built.
        data: has been set up.
    """

    def __init__(self, trainer: Trainer, model: LoRATasks, data: LightningDataModule):
        self.trainer, self.model, self.data = trainer, model, data
        self.adapters: list[Adapter] = model.adapters()
        self._candidates = Candidates()
        aside = (MergeCallback, ResultsCallback)
        self.set_aside = [one for one in trainer.callbacks if isinstance(one, aside)]
        trainer.callbacks[:] = [self._candidates, *(one for one in trainer.callbacks if not isinstance(one, aside))]
        self._cache = AlignmentCache()

    def restore(self) -> None:
        """Give the trainer its callbacks back."""
        self.trainer.callbacks[:] = [*self.set_aside, *(c for c in self.trainer.callbacks if c is not self._candidates)]

    @property
    def bytes_each(self) -> int:
        """What the weights of one merge take, at most."""
        size = next(self.model.model.parameters()).element_size()
        return size * sum(math.prod(update.shape) for update in self.adapters[0].values())

    def room(self) -> int:
        """Return how many candidates memory holds at once, at least one."""
        device = self.model.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory() or 4e9
        return max(1, int(MEMORY * free / max(1, self.bytes_each)))

    def references(self) -> list[Score]:
        """Return the scores of the pretrained and the finetuned weights."""
        return self._validate({PRETRAINED: pretrained(), FINETUNED: finetuned()})

    def measure(self, candidates: Sequence[Candidate], merger_of: Callable[[Candidate], Merger]) -> list[Record]:
        """Merge all, run the validation data through all, and return what was measured."""
        variants, seconds = {}, []
        for number, candidate in enumerate(candidates):
            began, merger = time.monotonic(), merger_of(candidate)
            merged = merger.merge(self.adapters, encode=self._cache.encoder(merger.space))
            variants[str(number)] = self.model.variant(candidate.what, merged)
            seconds.append(round(time.monotonic() - began, 3))
        scores = self._validate(variants)
        return [
            Record(
                candidate,
                tuple(
                    Score(candidate.merge, s.task, s.metric, s.value, s.count) for s in scores if s.variant == str(n)
                ),
                seconds[n],
            )
            for n, candidate in enumerate(candidates)
        ]

    def _validate(self, variants: dict[str, Variant]) -> list[Score]:
        self._candidates.variants = variants
        self.trainer.validate(self.model, datamodule=self.data, verbose=False)
        return self.model.scores()
