"""The curves of training in TensorBoard, of a run that may be killed and go on: each point once."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

PATTERN = "events.out.tfevents.*"
KEY = "training_events"


class TrainingEvents(Callback):
    """Keep in each checkpoint how far the event files of TensorBoard's logger had come.

    What is logged up to a checkpoint is on disk before it. A run that goes on from there cuts off what an interrupted
    one has logged since, by `cut_off`, and logs it again.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put everything on disk, and note the sizes."""
        found: dict[str, dict[str, int]] = {}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
                found[logger.name] = {path.name: path.stat().st_size for path in Path(logger.log_dir).glob(PATTERN)}
        checkpoint[KEY] = found


def cut_off(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Remove from the event files what was logged after a checkpoint; all, where there is none.

    Args:
        trainer: has not logged anything yet.
        checkpoint: from which it goes on, empty for a run from the start. One that says nothing of event files leaves
            them as they are.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger) or (checkpoint and logger.name not in checkpoint.get(KEY, {})):
            continue
        sizes = checkpoint.get(KEY, {}).get(logger.name, {})
        for path in Path(logger.log_dir).glob(PATTERN):
            if path.name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path.name]:
                with path.open("r+b") as file:
                    file.truncate(sizes[path.name])
