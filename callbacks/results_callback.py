"""The callback that collects scores, and shows and saves them."""

import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks import plots
from callbacks.adaptation_plots import COEFFICIENTS_PICTURE, KEPT_PICTURE
from callbacks.curves import Curves
from callbacks.event_files import VariantEvents, write_test, write_validation
from callbacks.machine import machine, peak_bytes
from callbacks.memory import MemoryForecast
from callbacks.report import repeat_command, report
from callbacks.results import Results
from callbacks.results_table import results_view
from datamodules import UnlabelledBatches
from lightning_modules import TestTimeAdaptation
from mergers.files import atomic_write

VERSIONS = ("torch", "lightning", "peft")


class ResultsCallback(Callback):
    """Show and save what validation and test measure; all files go to the run folder (trainer.default_root_dir).

    While fitting, each validation adds to ``history.csv`` and to the curves in ``tensorboard/<variant>/``. A test
    ends with one table on the screen, and writes ``results.json``, ``results.csv``, ``report.md`` and ``plots/``.
    ``validate`` prints its table and writes nothing; neither does ``fast_dev_run``.

    Args:
        plots: draw ``plots/*.png`` and put them into the report.
        tensorboard: write event files, one folder a variant, so that merged and finetuned accuracy share a chart.
        notes: sentences for the report's caveats, beside those that the data brings (its attribute ``caveats``).
    """

    def __init__(self, plots: bool = True, tensorboard: bool = True, notes: list[str] | None = None):
        self.plots = plots
        self.tensorboard = tensorboard
        self.notes = list(notes or [])
        self.curves = Curves()
        self.results: Results | None = None
        self._events: VariantEvents | None = None
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._pending: tuple[Results, str] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far and the seconds they took, for a run that goes on."""
        return {"curves": self.curves.state(), "fit_seconds": self._fit_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the curves where a checkpoint left them."""
        self.curves = Curves.from_state(state_dict["curves"])
        self._seconds["fit"] = state_dict["fit_seconds"]

    def _fit_seconds(self) -> float:
        running = time.monotonic() - self._began if self._fitting else 0.0
        return self._seconds.get("fit", 0.0) + running

    # Fit.

    _fitting = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a checkpoint has been loaded by now."""
        self._began, self._fitting = time.monotonic(), True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation to the curves, or, for ``validate``, show it."""
        if trainer.sanity_checking and not isinstance(pl_module, TestTimeAdaptation):  # it looks at where it starts
            return
        scores = pl_module.scores()
        if trainer.state.fn != "fit":
            if scores:
                self.results = self._results(trainer, pl_module, "val")
                self._pending = self.results, ""
            return
        step = trainer.global_step
        self.curves = self.curves.record(step, trainer.current_epoch, scores)
        if not _writes(trainer):
            return
        folder = Path(trainer.default_root_dir)
        _write(folder / "history.csv", self.curves.to_csv())
        if self.tensorboard:
            fresh = self._events is None
            if fresh:
                self._events = VariantEvents(folder / "tensorboard", "fit")
            for one in self.curves.steps if fresh else (step,):
                write_validation(self._events, self.curves, one)
            self._events.flush()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves, whether or not a test follows."""
        self._seconds["fit"] = self._fit_seconds()
        self._fitting = False
        self._close()
        if _writes(trainer) and self.plots and len(self.curves.steps) > 1:
            drawn = plots.curves(self.curves, _adapts(trainer))
            _write(Path(trainer.default_root_dir) / "plots" / "curves.png", plots.png(drawn))

    # Test.

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything; the table follows when the progress bar is gone."""
        self._seconds["test"] = time.monotonic() - self._began
        if not pl_module.scores():
            return
        self.results = results = self._results(trainer, pl_module, "test")
        self._pending = results, ""
        if not _writes(trainer):
            return
        folder = Path(trainer.default_root_dir)
        history = self._history(folder)
        # The numbers first: no plot that fails may cost them.
        _write(folder / "results.json", results.to_json())
        _write(folder / "results.csv", results.to_csv())
        drawn = plots.figures(results, history) if self.plots else {}
        images = {name: plots.png(figure) for name, figure in drawn.items()}
        learned = _pictures_of_learned(folder) if results.adapts and self.plots else []
        text = report(results, [*images, *learned], results.meta["command"], results.meta["caveats"])
        for name, content in images.items():
            _write(folder / "plots" / name, content)
        _write(folder / "report.md", text)
        if self.tensorboard:
            events = VariantEvents(folder / "tensorboard", "test")
            step = max((trainer.global_step, *history.steps))
            write_test(events, results, step, {f"plots/{Path(k).stem}": v for k, v in images.items()}, text)
            events.close()
        self._pending = results, _where(folder, bool(images), self.tensorboard)

    def _results(self, trainer: Trainer, module: LightningModule, split: str) -> Results:
        seed = getattr(module, "seed", None)
        if seed is None and "PL_GLOBAL_SEED" in os.environ:
            seed = int(os.environ["PL_GLOBAL_SEED"])
        fingerprints = getattr(trainer.datamodule, "fingerprints", dict)
        of_variants = [caveat for variant in module.variants.values() for caveat in variant.caveats]
        meta = {
            "run": Path(trainer.default_root_dir).resolve().name,
            "seed": seed,
            "versions": {name: version(name) for name in VERSIONS},
            "splits": fingerprints(),
            "seconds": {name: round(value, 1) for name, value in self._seconds.items()},
            "machine": machine(module.device),
            "peak_bytes": peak_bytes(module.device),
            "expected_bytes": next((one.expected for one in trainer.callbacks if isinstance(one, MemoryForecast)), {}),
            "adapts": _adapts(trainer),
            "command": repeat_command(),
            "caveats": [*getattr(trainer.datamodule, "caveats", ()), *of_variants, *self.notes],
        }
        described = {name: variant.description for name, variant in module.variants.items()}
        return Results(tuple(module.scores()), meta, split, described)

    def _history(self, folder: Path) -> Curves:
        # A test in a process of its own finds the curves where fit left them.
        path = folder / "history.csv"
        if self.curves.points or not path.is_file():
            return self.curves
        return Curves.from_csv(path.read_text(encoding="utf-8", errors="replace"), str(path))

    # The screen.

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table below everything else."""
        self._close()
        if self._pending is not None and trainer.progress_bar_callback is not None:
            # A live bar would be drawn once more below the table.
            trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
        self._print(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print what was measured before something failed."""
        self._close()
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._pending is None or not trainer.is_global_zero:
            return
        (results, where), self._pending = self._pending, None
        sys.stdout.flush()
        console = Console()
        console.print()
        console.print(results_view(results, console.width))
        if where:
            console.print(where, soft_wrap=True, markup=False, highlight=False)

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not trainer.fast_dev_run


def _adapts(trainer: Trainer) -> bool:
    return isinstance(trainer.datamodule, UnlabelledBatches)


def _pictures_of_learned(folder: Path) -> list[str]:
    # `AdaptationCheckpoint` has drawn them when adapting ended.
    return [name for name in (KEPT_PICTURE, COEFFICIENTS_PICTURE) if (folder / "plots" / name).is_file()]


def _write(path: Path, content: str | bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _where(folder: Path, images: bool, events: bool) -> str:
    files = "report.md, results.json, results.csv" + (", plots/" if images else "")
    return f"{folder}: {files}" + (f"; curves: tensorboard --logdir {folder / 'tensorboard'}" if events else "")
