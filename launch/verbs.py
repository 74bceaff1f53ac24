"""Lightning's Trainer with the verbs that the command line has beside its own, and checkpoints that are whole."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

from mergers.files import atomic_write


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning's own come by way of the system's temporary folder: where that is another disk, they are copied into
    place, and a process that is killed meanwhile leaves half of one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; on another machine's disk as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class WholeEpochs(_FitLoop):
    """Lightning's loop, for which the end of an epoch is its end whether a run's length is given in epochs or in steps.

    With max_steps, Lightning takes any checkpoint for one in the middle of an epoch: one that was saved at its end has
    the epoch ended twice, and the next begun one too late.
    """

    def _iteration_based_training(self) -> bool:
        return False

    def _load_combined_loader_states(self) -> None:
        restarting, self._restarting = (
            self._restarting,
            True,
        )  # loaders count for themselves, also at the end of an epoch
        super()._load_combined_loader_states()
        self._restarting = restarting


class SheetbendTrainer(Trainer):
    """Lightning's Trainer; it also adapts, searches, analyses. What a verb does is said by `launch.lightning_cli`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = WholeCheckpoints()
        self.fit_loop.__class__ = WholeEpochs  # Lightning takes none of another class

    def adapt(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Learn a merge on unlabelled data, then test every variant."""
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)

    # A configuration that `fit` has written says that it had no checkpoint, and every verb reads it.

    def search(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Find the best settings of merges on validation data, then test them once."""
        self.validate(model, datamodule=datamodule)

    def analyse(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Draw what merging does to adapters, and why."""
        self.test(model, datamodule=datamodule)
