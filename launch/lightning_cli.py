"""LightningCLI with our defaults, one-line errors, and runs that go on where they stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import callbacks
from callbacks.progress import progress_bar
from launch import adaptation, cli, seeds
from launch.analysing import run as analysing
from launch.analysing.output import FOLDER as ANALYSES
from launch.analysing.settings import Analysis
from launch.config_parser import Parser, task_declarations
from launch.errors import one_line
from launch.runs import ADAPTATION_SETTINGS, CHECKPOINT, Interruption, SaveConfig, clear, read_checkpoint, resume_point
from launch.searching import run as searching
from launch.searching.records import Records, alone
from launch.searching.settings import Search
from launch.searching.sweep import Sweeper
from launch.verbs import SheetbendTrainer
from lightning_modules import Adaptation, LoRATasks
from mergers import SheetbendError

# What checkpoints hold, and what is said of others.
FITTED = ("state_dict", "tasks", "best", "epoch"), "not one of ours; fit again"
ADAPTED = ("state_dict", "adaptation", "global_step"), "not of an adaptation; adapt again"

DESCRIPTION = "Fine-tune LoRA adapters, merge them into one model, and see what merging kept."

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/run",
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "max_epochs": 10,
    "num_sanity_val_steps": 0,
}


class SheetbendCLI(LightningCLI):
    """Subcommands fit, validate, test, search, analyse and adapt; the run folder is ``trainer.default_root_dir``.

    Args:
        words: the command line; or one run of a series: a mapping of ``subcommand`` and, under its name, all settings.
    """

    def __init__(self, words: Sequence[str] | Mapping[str, Any]):
        self.in_series = isinstance(words, Mapping)
        self.words = () if self.in_series else tuple(words)
        self.interruption = Interruption()
        self.resume_from: Path | None = None
        super().__init__(
            model_class=LoRATasks,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_class=SheetbendTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"prog": cli.PROGRAM, "description": DESCRIPTION},
            parser_class=Parser,
            auto_configure_optimizers=False,
            args=words if self.in_series else list(words),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands; all take the same options, so that each reads the others' configs."""
        skip = {"model", "datamodule", "weights_only"}
        return {
            "fit": skip | {"train_dataloaders", "val_dataloaders"},
            "validate": skip | {"dataloaders", "verbose"},
            "test": skip | {"dataloaders", "verbose"},
            "adapt": skip,
            "search": skip,
            "analyse": skip,
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning has no word for."""
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test every variant when ``fit`` has ended."
        )
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Let ``fit``, ``search``, ``adapt`` or the fits of ``analyse rank`` replace what the run folder "
            "(trainer.default_root_dir) already holds of it.",
        )
        parser.add_argument(
            "--adaptation",
            type=Adaptation | None,
            default=None,
            help="What ``adapt`` learns, and how; by default AdaRank on a sum of updates. Other commands pass it over.",
        )
        parser.add_argument(
            "--search",
            type=Search | None,
            default=None,
            help="What ``search`` tries, and what decides. Other commands pass it over.",
        )
        parser.add_argument(
            "--seeds",
            type=int,
            nargs="+",
            default=None,
            help="Run the command once a seed: with it as seed_everything, in the folder seed-SEED of the run folder, "
            "and for {seed} in any path, such as model.adapters. What is finished and unchanged is not run again.",
        )
        parser.add_argument(
            "--analysis",
            type=Analysis | None,
            default=None,
            help="What ``analyse`` looks at, and how closely. Other commands pass it over.",
        )
        for key, (container, declared) in task_declarations().items():
            parser.add_fields_help(key, container, declared)

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: ours hold none, and the configuration says what counts."""

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise SheetbendError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1}")
        super()._set_seed()

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | Mapping[str, Any]) -> None:
        """Parse ``args``, not ``sys.argv``."""
        self.config = parser.parse_object(args) if self.in_series else parser.parse_args(args)

    @property
    def seeds(self) -> list[int] | None:
        """The seeds of a series, of which each run is a `SheetbendCLI` of its own."""
        return self._get(self.config, "seeds")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what a class says against its arguments becomes one line."""
        if self.seeds is not None:
            return
        try:
            super().instantiate_classes()
        except MisconfigurationException as error:
            raise SheetbendError(f"trainer: {' '.join(str(error).split())}") from None
        except ValueError as error:
            if "Does not validate against" in str(error):
                raise SheetbendError(one_line(str(error))) from None
            if "Trainer(" not in str(error):
                raise
            raise SheetbendError(f"trainer: {' '.join(str(error).split())}") from None

    def _run_subcommand(self, subcommand: str) -> None:
        if self.seeds is None:
            super()._run_subcommand(subcommand)
        else:
            seeds.run(subcommand, self.seeds, self._settings(subcommand), self.words)

    def _settings(self, subcommand: str) -> dict[str, Any]:
        """Return all settings as plain values."""
        return yaml.safe_load(self._parser(subcommand).dump(self.config[subcommand], skip_none=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks that every run has, each unless the configuration brings its own."""
        adapts = self.subcommand == "adapt"
        own = [
            callbacks.AdaptationCheckpoint() if adapts else callbacks.AdapterCheckpoint(),
            callbacks.ResultsCallback(),
            ModelCheckpoint(
                dirpath=self.output / CHECKPOINT.parent,
                filename=CHECKPOINT.stem,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            ),
            self.interruption,
        ]
        settings = {**self._get(self.config_init, "trainer")}
        if adapts:
            settings |= adaptation.trainer_settings(self.adaptation, self.folder, settings)
            settings["callbacks"] = adaptation.without_those_of_training(settings.get("callbacks") or [])
        if self.subcommand in ("search", "analyse"):
            settings["default_root_dir"] = str(self.output)
        if self.subcommand == "analyse":
            settings["logger"] = False
        if settings.get("enable_progress_bar") is not False:
            own.append(progress_bar())
        given = tuple(type(callback) for callback in settings.get("callbacks") or [])
        if settings.get("enable_checkpointing") is False:
            own = [callback for callback in own if not isinstance(callback, ModelCheckpoint)]
        if settings.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                self.output, name="tensorboard", version="training", default_hp_metric=False
            )
        extra: list[Callback] = [callback for callback in own if not issubclass(type(callback), given)]
        return self._instantiate_trainer({**settings, **kwargs}, extra)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    @property
    def adaptation(self) -> Adaptation:
        """What ``adapt`` learns, and how."""
        return self._get(self.config_init, "adaptation") or Adaptation()

    @property
    def output(self) -> Path:
        """The folder that is written to: the run folder, or that of an adaptation, a search or analyses in it."""
        if self.subcommand == "adapt":
            return adaptation.folder_of(self.folder, self.adaptation)
        if self.subcommand == "search":
            return self.folder / searching.FOLDER / self.searched.label
        if self.subcommand == "analyse":
            return self.folder / ANALYSES
        return self.folder

    @property
    def searched(self) -> Search:
        """What ``search`` tries."""
        return self._get(self.config_init, "search") or Search()

    def _prepare(self, model: LoRATasks, datamodule: LightningDataModule, fresh: bool) -> None:
        """Load data and model before anything is written, so that what fails for want of them leaves no trace."""
        datamodule.check_all()
        datamodule.quiet = self.trainer.progress_bar_callback is None
        processes = self.trainer.num_devices * self.trainer.num_nodes
        if processes > 1 and self.in_series:  # each would be started with the command line of the whole series
            raise SheetbendError(
                f"trainer.devices and num_nodes make {processes} processes; a series runs in one, give "
                "--trainer.devices 1, or one seed a command"
            )
        if processes > 1 and self.subcommand != "adapt":  # before Lightning starts them
            raise SheetbendError(
                f"trainer.devices and num_nodes make {processes} processes; tasks take turns on one device, give "
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
        if not self.trainer.fast_dev_run:
            if not overwrite and checkpoint is None:
                checkpoint = resume_point(self.folder, self._settings("fit"))
            content = read_checkpoint(checkpoint, *FITTED)
            self._prepare(model, datamodule, fresh=True)
            if overwrite:
                clear(self.folder)
            if checkpoint is not None:
                done = content["epoch"] + 1 >= (self.trainer.max_epochs or 0) != -1
                print(f"{'trained already' if done else 'going on from'}: {checkpoint}", flush=True)
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
        if checkpoint is None and not overwrite and not self.trainer.fast_dev_run:
            checkpoint = resume_point(folder, self._settings(self.subcommand), ADAPTATION_SETTINGS)
        content = read_checkpoint(checkpoint, *ADAPTED)
        self._prepare(model, datamodule, fresh=False)
        module, data = adaptation.prepared(model, datamodule, settings)
        if content:
            module.check(content, self.trainer.num_devices * self.trainer.num_nodes)
        if overwrite and not self.trainer.fast_dev_run:
            clear(folder)
        if checkpoint is not None and self.trainer.is_global_zero:
            print(f"going on from: {checkpoint}", flush=True)
        self._run(self.trainer.fit, module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if options["test_after_fit"]:
            adaptation.add_to_test(self.trainer, module)
            self._run(self.trainer.test, model, datamodule=data, verbose=False)

    def search(self, model: LoRATasks, datamodule: LightningDataModule) -> None:
        """Find the best settings of the merges on validation data, then test them once."""
        options, settings, folder = self.config[self.subcommand], self.searched, self.output
        overwrite, options["overwrite"] = options["overwrite"], False
        options["search"] = options["search"] or Namespace(asdict(settings))  # so that config.yaml says it
        callback, mergers = searching.searchable(self.trainer.callbacks)
        settings.spaces(mergers)
        if overwrite:
            self._refuse_own_inputs(None, model.adapter_source)
        self._prepare(model, datamodule, fresh=False)
        metrics = searching.metrics_of(model)
        searching.check_metric(settings, metrics)
        with alone(folder):
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

    def analyse(self, model: LoRATasks, datamodule: LightningDataModule) -> None:
        """Draw what merging does to the adapters, and why."""
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
