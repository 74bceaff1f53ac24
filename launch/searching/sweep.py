"""Candidates of a search, measured in shared sweeps of the validation data."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lightning.pytorch import LightningDataModule, Trainer

from launch.searching.records import Candidate, Record
from launch.sweeps import Sweeps
from lightning_modules import LoRATasks, Variant
from mergers import Merger, SheetbendError, Update
from mergers.cache import AlignmentCache
from mergers.run import Encode
from mergers.spaces.base import Encoded, Space

# What is measured in an interrupted sweep is lost, and a larger one spares little more of the loading.
MOST = 32
# Spaces whose alignments are kept in memory beside those on disk; each is about as large as the adapters.
ALIGNED_SPACES = 2


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


class Sweeper(Sweeps):
    """Measures candidates of one run on its validation data.

    Args:
        trainer: validates; callbacks that merge or show results are set aside until `restore`.
        model: built.
        data: has been set up.
    """

    def __init__(self, trainer: Trainer, model: LoRATasks, data: LightningDataModule):
        super().__init__(trainer, model, data, "val")
        self.alignments = Alignments()

    def sweep(self, candidates: Sequence[Candidate], merger_of: Callable[[Candidate], Merger]) -> list[Record]:
        """Merge all, run the validation data through all, and return what was measured; of a failed merge, why."""
        seconds: list[float] = []
        failed: list[str] = []

        def variant_of(candidate: Candidate) -> Variant | None:
            began, merger = time.monotonic(), merger_of(candidate)
            variant, why = None, ""
            try:
                merged = merger.merge(self.adapters, encode=self.alignments.encoder(merger.space))
                variant = self.model.variant(candidate.what, merged)
            except SheetbendError as error:  # it overflows, say: the others go on
                why = str(error)
            seconds.append(round(time.monotonic() - began, 3))
            failed.append(why)
            return variant

        found = self.measure(candidates, variant_of, len(candidates))
        return [
            Record(candidate, tuple(replace(score, variant=candidate.merge) for score in scores), *facts)
            for (candidate, scores), *facts in zip(found, seconds, failed, strict=True)
        ]
