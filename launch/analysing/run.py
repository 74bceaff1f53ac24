"""Analyses one after the other: what can be checked is checked first, data and model are loaded once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, Trainer

from callbacks import MergeCallback
from launch.analysing import cka, interference, rank, sides, tasks
from launch.analysing.output import FOLDER, Finding, keep
from launch.analysing.settings import Analysis
from launch.commands.screen import say
from launch.sweeps import Sweeps
from lightning_modules import LoRATasks
from lightning_modules.adapter_folders import find_adapters
from lightning_modules.full_checkpoints import is_full_checkpoint
from mergers import Adapter, Merger, SheetbendError, load_adapter


class Run:
    """The analyses of one command.

    Args:
        settings: what is looked at.
        trainer: tests merged models.
        model: not built yet.
        data: not loaded yet.
        prepare: loads data and builds the model.
        folder: of the run whose adapters are looked at.
        config: all that was set, YAML.
        overwrite: whether fits of ranks that are finished begin again.
    """

    def __init__(
        self,
        settings: Analysis,
        trainer: Trainer,
        model: LoRATasks,
        data: LightningDataModule,
        prepare: Callable[[], None],
        folder: Path,
        config: str,
        overwrite: bool = False,
    ):
        self.settings, self.trainer, self.model, self.data = settings, trainer, model, data
        self.prepare, self.folder, self.config, self.overwrite = prepare, folder, config, overwrite
        self.mergers = mergers_of(trainer.callbacks)
        self.left_out = [name for name in _names(trainer.callbacks) if name not in self.mergers]
        self._prepared = False

    def check(self) -> None:
        """Raise `SheetbendError` for what can be seen to be missing before anything is loaded."""
        self.settings.require_kinds()
        kinds, names = set(self.settings.kinds), list(self.data.task_names)
        if len(names) < 2:
            raise SheetbendError(f"data.tasks names {names[0]} alone; analyses compare tasks, give two or more")
        if kinds & {"tasks", "sides"} and not self.mergers:
            raise SheetbendError("trainer.callbacks has no merge to analyse; give callbacks.MergeCallback with mergers")
        limit = f"limit_{self.settings.split}_batches"
        if kinds & {"tasks", "sides"} and getattr(self.trainer, limit, None) == 0:
            raise SheetbendError(f"trainer.{limit} is 0, so nothing would be measured; give 1 or more")
        if "sides" in kinds:
            sides.in_knots(self.mergers)
        if "rank" in kinds:
            rank.check(self.settings, names)
        if "cka" in kinds and self.settings.whole:
            cka.sources_of(self.settings.whole, names)

    def go(self) -> None:
        """Do all that is asked for; what is finished is kept, whatever becomes of the rest."""
        found: Mapping[str, Callable[[], Finding]] = {
            "tasks": self._tasks,
            "sides": self._sides,
            "rank": self._rank,
            "cka": self._cka,
            "interference": self._interference,
        }
        for kind in self.settings.kinds:
            keep(found[kind](), self.folder / FOLDER, self.config)

    def _load(self) -> None:
        if not self._prepared:
            self.prepare()
            self._prepared = True

    def _swept(self, measure: Callable[[Sweeps], Finding]) -> Finding:
        self._load()
        if self.left_out:
            say(f"left out, since they were made before: {', '.join(self.left_out)}")
        sweeps = Sweeps(self.trainer, self.model, self.data, self.settings.split)
        try:
            return measure(sweeps)
        finally:
            sweeps.restore()

    def _tasks(self) -> Finding:
        samples, seed = self.settings.samples, self.model.seed
        return self._swept(lambda sweeps: tasks.analyse(sweeps, self.mergers, samples, seed))

    def _sides(self) -> Finding:
        return self._swept(lambda sweeps: sides.analyse(sweeps, self.mergers))

    def _rank(self) -> Finding:
        config, names = yaml.safe_load(self.config), list(self.data.task_names)
        return rank.analyse(self.settings, config, names, self.folder / FOLDER / "rank", self.overwrite)

    def _cka(self) -> Finding:
        self._load()
        settings = self.settings
        return cka.analyse(self.trainer, self.model, self.data, settings.split, settings.examples, settings.whole)

    def _interference(self) -> Finding:
        return interference.analyse(self._adapters())

    def _adapters(self) -> list[Adapter]:
        """Return the adapters; the model is built only for full checkpoints, which are differences from it."""
        if not self._prepared:
            source = self.model.adapter_source or str(self.folder / "adapters")
            folders = find_adapters(source, list(self.data.task_names))
            if not any(is_full_checkpoint(folder) for folder in folders.values()):
                return [load_adapter(folder, name=task) for task, folder in folders.items()]
        self._load()
        return self.model.adapters()


def mergers_of(callbacks: Sequence[Any]) -> dict[str, Merger]:
    """Return the merges of the MergeCallback that merge; not those that were made before."""
    found = (one for one in callbacks if isinstance(one, MergeCallback))
    return {name: merge for one in found for name, merge in one.mergers.items() if isinstance(merge, Merger)}


def _names(callbacks: Sequence[Any]) -> list[str]:
    return [name for one in callbacks if isinstance(one, MergeCallback) for name in one.mergers]
