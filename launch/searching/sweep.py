"""One sweep of the validation data with many candidates."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from callbacks import MergeCallback, ResultsCallback
from launch.searching.records import Candidate, Record
from lightning_modules import LoRATasks, Score, Variant
from lightning_modules.variants import FINETUNED, PRETRAINED, finetuned, pretrained
from mergers import Adapter, Merger, SheetbendError, Update
from mergers.cache import AlignmentCache
from mergers.preflight import available_memory
from mergers.run import Encode
from mergers.spaces.base import Encoded, Space

# Share of the free memory that merged weights may take.
MEMORY = 0.5
# What is measured in an interrupted sweep is lost, and a larger one spares little more of the loading.
MOST = 32
# Spaces whose alignments are kept in memory beside those on disk; each is about as large as the adapters.
ALIGNED_SPACES = 2


class Candidates(Callback):
    """Gives the model candidates as its variants, and lets go of them after the sweep."""

    def __init__(self) -> None:
        self.make: Callable[[], dict[str, Variant]] = dict

    def on_validation_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Merge here, where the model is on its device, and test these alone."""
        pl_module.variants = self.make()

    def on_validation_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Let go of the merged weights."""
        pl_module.variants = {name: variant.released() for name, variant in pl_module.variants.items()}


class Alignments:
    """What spaces made of the adapters: in memory for the spaces used last, on disk for all.

    Candidates that differ in coefficients or density share their alignment, so it is looked up once a search.
    """

    def __init__(self) -> None:
        self.disk = AlignmentCache()
        self._kept: dict[str, dict[tuple[int, ...], tuple[Sequence[Update], Encoded]]] = {}

    def encoder(self, space: Space) -> Encode:
        """Return what takes the place of ``space.encode``."""
        if not space.costly:
            return space.encode
        encode = self.disk.encoder(space)
        known = self._kept.pop(repr(space), {})
        self._kept[repr(space)] = known  # the one used last is the last
        while len(self._kept) > ALIGNED_SPACES:
            self._kept.pop(next(iter(self._kept)))

        def remembered(updates: Sequence[Update]) -> Encoded:
            key = tuple(map(id, updates))  # the updates are kept too, so that no other can have its id
            if key not in known:
                known[key] = updates, encode(updates)
            return known[key][1]

        return remembered


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
        self.alignments = Alignments()

    def restore(self) -> None:
        """Give the trainer its callbacks back."""
        self.trainer.callbacks[:] = [*self.set_aside, *(c for c in self.trainer.callbacks if c is not self._candidates)]

    def bytes_of(self, merger: Merger) -> int:
        """Return what the weights of one merge take while they are tested."""
        branches = self.model.merges_as_branches and merger.low_rank
        size = next(self.model.model.get_base_model().parameters()).element_size()
        return size * sum(_numbers([one[module] for one in self.adapters], branches) for module in self.adapters[0])

    def room(self, bytes_each: int) -> int:
        """Return how many candidates memory holds at once, at least one."""
        device: Any = self.trainer.strategy.root_device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory() or 4e9
        # One merge is there in float32 until it has been added to the weights.
        passing = 4 * sum(_numbers([one[module] for one in self.adapters], False) for module in self.adapters[0])
        return max(1, int((MEMORY * free - passing) / max(1, bytes_each)))

    def references(self) -> list[Score]:
        """Return the scores of the pretrained and the finetuned weights."""
        return self._validate(lambda: {PRETRAINED: pretrained(), FINETUNED: finetuned()})

    def measure(self, candidates: Sequence[Candidate], merger_of: Callable[[Candidate], Merger]) -> list[Record]:
        """Merge all, run the validation data through all, and return what was measured; of a failed merge, why."""
        seconds: dict[str, float] = {}
        failed: dict[str, str] = {}

        def merged() -> dict[str, Variant]:
            variants = {}
            for number, candidate in enumerate(candidates):
                began, merger = time.monotonic(), merger_of(candidate)
                try:
                    update = merger.merge(self.adapters, encode=self.alignments.encoder(merger.space))
                    variants[str(number)] = self.model.variant(candidate.what, update)
                except SheetbendError as error:  # it overflows, say: the others go on
                    failed[str(number)] = str(error)
                seconds[str(number)] = round(time.monotonic() - began, 3)
            return variants

        scores = self._validate(merged)
        return [
            Record(
                candidate,
                tuple(Score(candidate.merge, s.task, s.metric, s.value, s.count) for s in scores if s.variant == name),
                seconds[name],
                failed.get(name, ""),
            )
            for name, candidate in ((str(number), candidate) for number, candidate in enumerate(candidates))
        ]

    def _validate(self, make: Callable[[], dict[str, Variant]]) -> list[Score]:
        self._candidates.make = make
        self.trainer.validate(self.model, datamodule=self.data, verbose=False)
        return self.model.scores()


def _numbers(updates: Sequence[Update], branches: bool) -> int:
    """Return of how many numbers one merged update of these is."""
    shape = updates[0].shape
    whole = shape[0] * shape[1] if len(shape) == 2 else shape[0]
    if not branches or len(shape) != 2:
        return whole
    return min(whole, min(sum(update.rank for update in updates), *shape) * sum(shape))
