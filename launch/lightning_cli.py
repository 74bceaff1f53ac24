"""What each subcommand does: runs that go on where they stopped, and leave no trace where they cannot begin."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks
from callbacks.training_events import cut_off
from launch import adaptation, cli
from launch.analysing import run as analysing
from launch.analysing.settings import Analysis
from launch.configured_cli import ConfiguredCLI, processes
from launch.locks import alone
from launch.runs import ADAPTATION_SETTINGS, SaveConfig, clear, read_checkpoint, resume_point
from launch.searching import run as searching
from launch.searching.records import Records
from launch.searching.strategies import check_installed
from launch.searching.sweep import Sweeper
from lightning_modules import LoRATasks
from lightning_modules.processes import check_processes
from mergers import SheetbendError

# What checkpoints hold, and what is said of others.
FITTED = ("state_dict", "tasks", "best", "epoch", "global_step"), "not one of ours; fit again"
ADAPTED = ("state_dict", "adaptation", "global_step"), "not of an adaptation; adapt again"


class SheetbendCLI(ConfiguredCLI):
    """Subcommands fit, validate, test, search, analyse and adapt."""

    def _prepare(self, model: LoRATasks, datamodule: LightningDataModule, fresh: bool) -> None:
        """Load data and model before anything is written, so that what fails for want of them leaves no trace."""
        datamodule.check_all()
        datamodule.quiet = self.trainer.progress_bar_callback is None
        several = processes(self.trainer)
        if several > 1 and self.in_series:  # each would be started with the command line of the whole series
            raise SheetbendError(
                f"trainer.devices and num_nodes make {several} processes; a series runs in one, give "
                "--trainer.devices 1, or one seed a command"
            )
        if several > 1 and self.subcommand in ("search", "analyse"):
            raise SheetbendError(
                f"trainer.devices and num_nodes make {several} processes; {self.subcommand} runs in one, give "
                "--trainer.devices 1"
            )
        if self.trainer.accumulate_grad_batches < 1:
            raise SheetbendError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}; give 1 or more"
            )
        if self.subcommand == "fit" and self.trainer.max_epochs == self.trainer.max_steps == -1:
            raise SheetbendError(
                "trainer.max_epochs and max_steps are -1; the cosine schedule needs a length, give one"
            )
        for callback in self.trainer.callbacks:
            if isinstance(callback, callbacks.MergeCallback):
                callback.check(list(datamodule.task_names))
        datamodule.prepare_data()
        datamodule.attach(model)
        datamodule.setup(self.subcommand)
        model.build(datamodule.tasks, fresh=fresh, run_folder=self.folder, data=datamodule)

    def fit(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Train, or go on with the run in the run folder, then test."""
        options = self.config[self.subcommand]
        overwrite, options["overwrite"] = options["overwrite"], False
        if overwrite:
            self._refuse_own_inputs(ckpt_path, model.adapter_source)
        checkpoint = ckpt_path
        with self._alone("--trainer.default_root_dir"):
            if not self.trainer.fast_dev_run:
                if not overwrite and checkpoint is None:
                    checkpoint = resume_point(self.folder, self._settings("fit"))
                content = read_checkpoint(checkpoint, *FITTED)
                check_processes(content.get("processes", 1) if content else None, processes(self.trainer))
                self._prepare(model, datamodule, fresh=True)
                if overwrite and self.trainer.is_global_zero:
                    clear(self.folder)
                if checkpoint is not None and self.trainer.is_global_zero:
                    done = content["epoch"] + 1 >= (self.trainer.max_epochs or 0) != -1
                    done = done or content["global_step"] >= self.trainer.max_steps != -1
                    print(f"{'trained already' if done else 'going on from'}: {checkpoint}", flush=True)
                cut_off(self.trainer, content)
            self._run(self.trainer.fit, model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
            if options["test_after_fit"]:
                self._run(self.trainer.test, model, datamodule=datamodule, verbose=False)

    def adapt(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Learn a merge on unlabelled data, or go on with it, then test every variant."""
        options, settings, folder = self.config[self.subcommand], self.adaptation, self.output
        overwrite, options["overwrite"] = options["overwrite"], False
        options["adaptation"] = options["adaptation"] or Namespace(asdict(settings))  # so that config.yaml says it
        adaptation.check_name(self.trainer, settings)
        if overwrite:
            self._refuse_own_inputs(ckpt_path, model.adapter_source)
        checkpoint = ckpt_path
        with self._alone("--adaptation.name"):
            if checkpoint is None and not overwrite and not self.trainer.fast_dev_run:
                checkpoint = resume_point(folder, self._settings(self.subcommand), ADAPTATION_SETTINGS)
            content = read_checkpoint(checkpoint, *ADAPTED)
            self._prepare(model, datamodule, fresh=False)
            module, data = adaptation.prepared(model, datamodule, settings)
            if content:
                module.check(content, processes(self.trainer))
            if overwrite and self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                clear(folder)
            if checkpoint is not None and self.trainer.is_global_zero:
                print(f"going on from: {checkpoint}", flush=True)
            if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
                cut_off(self.trainer, content)
            self._run(self.trainer.fit, module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if options["test_after_fit"]:
                adaptation.add_to_test(self.trainer, module)
                self._run(self.trainer.test, model, datamodule=data, verbose=False)

    def search(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Find the best settings of the merges on validation data, then test them once."""
        _refuse_checkpoint(ckpt_path)
        options, settings, folder = self.config[self.subcommand], self.searched, self.output
        overwrite, options["overwrite"] = options["overwrite"], False
        options["search"] = options["search"] or Namespace(asdict(settings))  # so that config.yaml says it
        callback, mergers = searching.searchable(self.trainer.callbacks)
        settings.spaces(mergers)
        check_installed(settings)
        if self.trainer.limit_val_batches == 0:
            raise SheetbendError("trainer.limit_val_batches is 0, so nothing would be measured; give 1 or more")
        if overwrite:
            self._refuse_own_inputs(None, model.adapter_source)
        self._prepare(model, datamodule, fresh=False)
        metrics = searching.metrics_of(model)
        searching.check_metric(settings, metrics)
        with alone(folder, "--search.name or run folder"):
            if overwrite:
                clear(folder)
            sweeper = Sweeper(self.trainer, model, datamodule)
            records = Records(folder, searching.identity_of(sweeper, options))
            run = searching.Run(settings, mergers, sweeper, records, metrics, model.seed)
            self._run(run.go)
            callback.mergers = searching.finish(run, folder)
            sweeper.restore()
            if options["test_after_fit"]:
                self._run(self.trainer.test, model, datamodule=datamodule, verbose=False)

    def analyse(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Draw what merging does to the adapters, and why."""
        _refuse_checkpoint(ckpt_path)
        settings = self._get(self.config_init, "analysis") or Analysis()
        trainer, options = self.trainer, self.config[self.subcommand]
        trainer.callbacks[:] = [one for one in trainer.callbacks if not isinstance(one, SaveConfig)]
        overwrite, options["overwrite"] = options["overwrite"], False
        run = analysing.Run(
            settings,
            trainer,
            model,
            datamodule,
            prepare=lambda: self._prepare(model, datamodule, fresh=False),
            folder=self.folder,
            config=self._parser(self.subcommand).dump(options, skip_none=False),
            overwrite=overwrite,
        )
        run.check()
        self._run(run.go)

    def _alone(self, otherwise: str) -> contextlib.AbstractContextManager[None]:
        """Keep other commands from writing to the same folder; of several processes the first does it for all."""
        first = self.trainer.is_global_zero and not self.trainer.fast_dev_run
        return alone(self.output, otherwise) if first else contextlib.nullcontext()

    def _refuse_own_inputs(self, ckpt_path: str | None, adapters: str | dict[str, str] | None) -> None:
        """Refuse to replace a run by what it would be made from."""
        sources = list(adapters.values()) if isinstance(adapters, dict) else [adapters]
        merges = [one for one in self.trainer.callbacks if isinstance(one, callbacks.MergeCallback)]
        sources += [merge for one in merges for merge in one.mergers.values() if isinstance(merge, Path)]
        for source in (source for source in (ckpt_path, *sources) if source is not None):
            if Path(source).resolve().is_relative_to(self.output.resolve()):
                raise SheetbendError(
                    f"--overwrite true would remove {source}, which this run starts from; give another "
                    "--trainer.default_root_dir"
                )

    def validate(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Measure every variant on the validation split."""
        self._measure(self.trainer.validate, model, datamodule, ckpt_path)

    def test(self, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None = None) -> None:
        """Measure every variant on the test split."""
        self._measure(self.trainer.test, model, datamodule, ckpt_path)

    def _measure(self, verb: Any, model: LoRATasks, datamodule: LightningDataModule, ckpt_path: str | None) -> None:
        read_checkpoint(ckpt_path, *FITTED)
        # A checkpoint brings its own adapters; without one they come from folders.
        self._prepare(model, datamodule, fresh=ckpt_path is not None)
        options = {} if ckpt_path is None else {"ckpt_path": ckpt_path, "weights_only": True}
        self._run(verb, model, datamodule=datamodule, verbose=False, **options)

    def _run(self, verb: Any, *args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            # What Lightning says of flags and of its own callbacks, in whatever class.
            said = ("val_check", "conditioned on metric")
            if not isinstance(error, MisconfigurationException) and not any(words in str(error) for words in said):
                raise
            raise SheetbendError(f"trainer: {' '.join(str(error).split())}") from None
        except SystemExit as stop:
            # Lightning turns Ctrl-C into exit status 1; fits of an analysis have statuses of their own.
            raise SystemExit(cli.INTERRUPTED if self.interruption.happened else stop.code or 1) from None


def _refuse_checkpoint(path: str | None) -> None:
    if path is not None:
        raise SheetbendError(
            f"ckpt_path is {path}, but adapters are read from folders here; give --model.adapters, or none for those "
            "of the run folder"
        )


class ConfigurationOnly(SheetbendCLI):
    """Reads a configuration as ``fit`` does, and makes model and datamodule of it, which load nothing.

    Data that are missing are no error here; ``datamodule.missing()`` names them.

    Args:
        words: options of ``fit``.
    """

    def __init__(self, words: Sequence[str]):
        super().__init__(["fit", *words])

    @property
    def data_settings(self) -> dict[str, Any]:
        """The configuration of the datamodule as plain values."""
        return self._settings("fit").get("data") or {}

    @property
    def seeds(self) -> None:
        """None: there is nothing to repeat."""
        return None

    def instantiate_trainer(self, **kwargs: Any) -> None:
        """Build no trainer."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""
