"""Progress without a terminal: one plain line an epoch."""

import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from callbacks.results import counted
from lightning_modules.test_time_adaptation import TestTimeAdaptation


class PlainProgress(ProgressBar):
    """Print one line an epoch, and one when testing starts; for logs and pipes, where a bar would be noise."""

    def __init__(self):
        super().__init__()
        self._enabled = True
        self._started = time.monotonic()

    def disable(self) -> None:
        """Print nothing more."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def _say(self, text: str) -> None:
        if self._enabled and self.trainer.is_global_zero:
            print(text, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and say what is ahead."""
        self._started = time.monotonic()
        if isinstance(pl_module, TestTimeAdaptation):
            settings = pl_module.settings
            self._say(
                f"adapting to {counted(len(pl_module.task_names), 'task')}: {counted(settings.steps, 'step')}, each of "
                f"{counted(settings.batch_size, 'example')} a task"
            )
            return
        tasks = len(getattr(pl_module, "task_names", ())) or 1
        turns = counted(tasks, "task") + (" in turn" if tasks > 1 else "")
        batches = trainer.num_training_batches
        self._say(f"training {turns}, {counted(batches, 'batch', 'batches')} an epoch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far training has come."""
        metrics = trainer.callback_metrics
        names = [name for name in metrics if name.startswith("val_") and "/" in name]
        scores = "  ".join(f"{name.partition('/')[2]} {100 * float(metrics[name]):.1f}" for name in names)
        measure = "accuracy" if all(name.startswith("val_accuracy/") for name in names) else "score"
        if isinstance(pl_module, TestTimeAdaptation):
            done = f"step {trainer.global_step}/{pl_module.settings.steps}  entropy {pl_module.entropy:.4f}  "
        else:
            epochs = f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
            done = f"epoch {trainer.current_epoch + 1}{epochs}  step {trainer.global_step}  "
        self._say(
            f"{done}{time.monotonic() - self._started:.0f} s  validation {measure} (%): {scores or 'not measured'}"
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is tested."""
        variants = len(getattr(pl_module, "variants", ()))
        self._say(f"testing {counted(variants, 'variant')} on {', '.join(getattr(pl_module, 'task_names', []))}")


def progress_bar() -> ProgressBar:
    """Return a rich bar in a terminal, plain lines elsewhere."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else PlainProgress()
