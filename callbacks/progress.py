"""Progress: a bar in a terminal, one plain line an epoch elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from callbacks.results import counted
from lightning_modules.scores import headline_scores
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is ahead of an adaptation."""
        if isinstance(pl_module, TestTimeAdaptation):
            settings = pl_module.settings
            self._say(
                f"adapting to {counted(len(pl_module.task_names), 'task')}: {counted(settings.steps, 'step')}, each of "
                f"{counted(settings.batch_size, 'example')} a task"
            )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where an adaptation starts."""
        if isinstance(pl_module, TestTimeAdaptation):
            self._say(adaptation_line(trainer.global_step, pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and say what is ahead of a training."""
        self._started = time.monotonic()
        if isinstance(pl_module, TestTimeAdaptation):
            return
        tasks = len(getattr(pl_module, "task_names", ())) or 1
        turns = counted(tasks, "task") + (" in turn" if tasks > 1 else "")
        batches = trainer.num_training_batches
        self._say(f"training {turns}, {counted(batches, 'batch', 'batches')} an epoch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far training has come."""
        seconds = time.monotonic() - self._started
        if isinstance(pl_module, TestTimeAdaptation):
            if has_stepped(pl_module):
                self._say(adaptation_line(trainer.global_step, pl_module, seconds))
            return
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
        found = {
            name.removeprefix("val_"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_") and "/" in name
        }
        self._say(
            f"epoch {trainer.current_epoch + 1}{epochs}  step {trainer.global_step}  {seconds:.0f} s  "
            f"{validation_words(found)}"
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is tested."""
        variants = len(getattr(pl_module, "variants", ()))
        self._say(f"testing {counted(variants, 'variant')} on {', '.join(getattr(pl_module, 'task_names', []))}")


class TerminalProgress(RichProgressBar):
    """Lightning's bar; an adaptation has one over all its steps, and the lines of `PlainProgress` above it."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what is logged for the bar, without the logger's version: ours is a word, always the same."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    @property
    def sanity_check_description(self) -> str:
        """What a look before the first step is called: that of an adaptation is a whole validation."""
        adapts = isinstance(self.trainer.lightning_module, TestTimeAdaptation)
        return self.validation_description if adapts else super().sanity_check_description

    def _say(self, text: str) -> None:
        if self.progress is not None and self.is_enabled:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where an adaptation starts."""
        super().on_sanity_check_end(trainer, pl_module)
        if isinstance(pl_module, TestTimeAdaptation):
            self._say(adaptation_line(trainer.global_step, pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and the bar over all steps of an adaptation."""
        super().on_train_start(trainer, pl_module)
        self._started = time.monotonic()
        if isinstance(pl_module, TestTimeAdaptation) and self.progress is not None:
            self.progress.speed_estimate_period = math.inf  # what remains has looks at the validation data in it
            self.train_progress_bar_id = self.progress.add_task(
                f"{'step':{len(self.validation_description)}}",  # as wide, so that the bar stays in its place
                total=pl_module.settings.steps,
                completed=trainer.global_step,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of an epoch; that of an adaptation goes on."""
        if not isinstance(pl_module, TestTimeAdaptation):
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; that of an adaptation counts steps."""
        last = trainer.global_step - 1 if isinstance(pl_module, TestTimeAdaptation) else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far an adaptation has come."""
        super().on_train_epoch_end(trainer, pl_module)
        if isinstance(pl_module, TestTimeAdaptation) and has_stepped(pl_module):
            self._say(adaptation_line(trainer.global_step, pl_module, time.monotonic() - self._started))


def has_stepped(module: TestTimeAdaptation) -> bool:
    """Return whether a window has steps: Lightning goes on by closing one without any."""
    return not math.isnan(module.entropy)


def adaptation_line(step: int, module: TestTimeAdaptation, seconds: float | None = None) -> str:
    """Return how far an adaptation has come, such as ``step 20/200  entropy 0.6110  17 s  validation ...``.

    Args:
        step: the last one.
        module: holds the entropy of the window and what was last measured.
        seconds: since the start; none: there was no window yet.
    """
    window = "" if seconds is None else f"entropy {module.entropy:.4f}  {seconds:.0f} s  "
    found = {f"{score.metric}/{score.task}": score.value for score in headline_scores(module.scores())}
    return f"step {step}/{module.settings.steps}  {window}{validation_words(found)}"


def validation_words(found: Mapping[str, float]) -> str:
    """Return what validation measured.

    Args:
        found: fractions by ``metric/task``.

    >>> validation_words({"accuracy/digits": 0.8721, "accuracy/scenes": 0.85})
    'validation accuracy (%): digits 87.2  scenes 85.0'
    """
    scores = "  ".join(f"{name.partition('/')[2]} {100 * value:.1f}" for name, value in found.items())
    measure = "accuracy" if all(name.startswith("accuracy/") for name in found) else "score"
    return f"validation {measure} (%): {scores or 'not measured'}"


def progress_bar() -> ProgressBar:
    """Return a rich bar in a terminal, plain lines elsewhere."""
    return TerminalProgress() if sys.stdout.isatty() else PlainProgress()
