"""LightningCLI with our options and defaults, the callbacks that every run has, and one-line errors."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from callbacks.training_events import TrainingEvents
from launch import adaptation, cli, seeds
from launch.analysing.output import FOLDER as ANALYSES
from launch.analysing.settings import Analysis
from launch.config_parser import Parser, task_declarations
from launch.errors import one_line
from launch.runs import CHECKPOINT, Interruption, SaveConfig
from launch.searching import run as searching
from launch.searching.settings import Search
from launch.verbs import SheetbendTrainer
from lightning_modules import Adaptation, AdapterDDP, LoRATasks
from mergers import SheetbendError
from mergers.workshops import FULL

DESCRIPTION = "Fine-tune LoRA adapters, merge them into one model, and see what merging kept."

USAGE = """%(prog)s --config FILE [options]

FILE is a configuration, such as configs/quickstart.yaml; every option below can stand in it. More is said by
--model.help NAME, --data.help NAME, --search.help, --adaptation.help and --analysis.help."""
TITLES = (
    ("A DataModule standardizes", "The data: which tasks, and how their examples come"),
    ("Fine-tune one LoRA adapter", "The model: a frozen backbone, and the adapters of all tasks"),
    ("Lightning's Trainer", "Lightning's Trainer"),
)
TRAINER_DEFAULTS = {
    "default_root_dir": "runs/run",
    "devices": 1,  # two would train as one with twice the batch, so that it is for the user to say
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "max_epochs": 10,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # tasks deal out their examples themselves
}

_LITTLE = 2**20  # bytes that are left of a disk on which the next write fails


@contextlib.contextmanager
def _naming_what_is_full(folder: Path) -> Iterator[None]:
    """Give an error of a full disk the name of ``folder``, if it has none and that is on such a disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL and shutil.disk_usage(_existing(folder)).free < _LITTLE:
            error.filename = str(folder)
        raise


def _existing(folder: Path) -> Path:
    """Return the nearest folder that exists: itself, or one above."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def processes(trainer: Trainer) -> int:
    """Return how many processes ``trainer`` runs in."""
    return trainer.num_devices * trainer.num_nodes


class ConfiguredCLI(LightningCLI):
    """Reads a configuration and builds data, model and trainer of it; the run folder is ``trainer.default_root_dir``.

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
        parser.usage = USAGE
        for group in parser._action_groups:  # which else have the first line of Lightning's own docstrings
            group.title = next((title for begin, title in TITLES if (group.title or "").startswith(begin)), group.title)
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
        try:
            self.config = parser.parse_object(args) if self.in_series else parser.parse_args(args)
        except UnicodeDecodeError as error:
            raise SheetbendError(f"the configuration is no text in UTF-8 ({error}); save it as such") from None
        except OverflowError as error:
            raise SheetbendError(f"the configuration has a number that no computer holds ({error}); mend it") from None
        except RecursionError:
            raise SheetbendError("the configuration is nested too deeply; see configs/quickstart.yaml") from None

    @property
    def seeds(self) -> list[int] | None:
        """The seeds of a series, of which each run is a CLI of its own."""
        return self._get(self.config, "seeds")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what a class says against its arguments becomes one line."""
        if not isinstance(given := self._get(self.config, "trainer"), Namespace):  # a number is taken for a file
            raise SheetbendError(f"trainer is {given!r}; give a mapping of its settings")
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
            with _naming_what_is_full(self.output):
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
            TrainingEvents(),
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
        trainer = self._trainer({**settings, **kwargs}, extra)
        if processes(trainer) > 1 and not adapts:  # how many there are is known only now, by what the machine has
            if settings.get("strategy", "auto") not in ("auto", "ddp"):
                raise SheetbendError(
                    f"trainer.strategy is {settings['strategy']}; {processes(trainer)} processes work by ddp, leave it "
                    "out"
                )
            trainer = self._trainer({**settings, **kwargs, "strategy": AdapterDDP()}, extra)
        if self.subcommand not in ("search", "analyse"):  # whose sweeps are as large as memory allows
            trainer.callbacks.insert(0, callbacks.MemoryForecast())
        return trainer

    def _trainer(self, settings: dict[str, Any], extra: list[Callback]) -> Trainer:
        given = settings.get("callbacks")
        if isinstance(given, list):  # to which Lightning adds the others
            settings = settings | {"callbacks": list(given)}
        try:
            return self._instantiate_trainer(settings, extra)
        except ValueError as error:
            raise SheetbendError(f"trainer: {' '.join(str(error).split())}") from None

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
