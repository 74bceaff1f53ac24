"""``sheetbend adapt``: a learned merge in a folder of its own, then a test of all variants."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from callbacks import MergeCallback
from callbacks.merge import RESERVED
from callbacks.results import START, counted
from datamodules import TaskDataModule
from datamodules.unlabelled import UnlabelledBatches
from lightning_modules import Adaptation, LoRATasks, TestTimeAdaptation
from mergers import SheetbendError
from mergers.adaptive.adarank import FIRST_LOGIT
from mergers.cache import AlignmentCache

FOLDER = "adaptations"

# What a run of so many steps, each over all tasks, needs of the Trainer whatever training needed.
_TRAINER = {
    "max_epochs": -1,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "overfit_batches": 0.0,
    "check_val_every_n_epoch": 1,
    "val_check_interval": 1.0,
    "limit_train_batches": 1.0,
    "num_sanity_val_steps": -1,  # a look at where it starts
    "reload_dataloaders_every_n_epochs": 0,
    "use_distributed_sampler": False,
}


def folder_of(run: Path, settings: Adaptation) -> Path:
    """Return where an adaptation of the adapters in ``run`` keeps what it writes."""
    return run / FOLDER / settings.label


def trainer_settings(settings: Adaptation, run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of the Trainer that an adaptation sets itself; say so of lengths that are given."""
    lengths = [flag for flag, none in (("max_steps", -1), ("max_time", None)) if given.get(flag, none) != none]
    if lengths:
        _say(f"trainer.{' and '.join(lengths)}: left to fit; adaptation.steps says how long it is adapted")
    return _TRAINER | {"max_steps": settings.steps, "default_root_dir": str(folder_of(run, settings))}


def without_those_of_training(callbacks: list[Callback]) -> list[Callback]:
    """Return what of a configuration's callbacks is meant for an adaptation too.

    Its checkpoints are its own, where the next run finds them and none of training is replaced; when it ends,
    ``adaptation.stop`` says, which no label decides.
    """
    left_out = [one for one in callbacks if isinstance(one, Checkpoint | EarlyStopping)]
    if left_out:
        names = ", ".join(dict.fromkeys(type(one).__name__ for one in left_out))
        _say(f"trainer.callbacks: {names} left to fit; adapt has checkpoints of its own and ends by adaptation.stop")
    return [one for one in callbacks if one not in left_out]


def prepared(
    model: LoRATasks, datamodule: TaskDataModule, settings: Adaptation
) -> tuple[TestTimeAdaptation, UnlabelledBatches]:
    """Return the module to fit and its data; ``model`` has been built on ``datamodule``."""
    cache = AlignmentCache()
    _say(f"{settings.label}: {settings}")
    if settings.learn != "coefficients" and settings.steps * settings.learning_rate < FIRST_LOGIT:
        rank_zero_warn(
            f"hardly a mask can change in {settings.steps} steps at learning rate {settings.learning_rate:g}, since "
            f"each begins {FIRST_LOGIT} away from flipping; give more steps, or a larger adaptation.learning_rate"
        )
    _say(f"decomposing the updates of {counted(len(model.task_names), 'task')}")
    adaptation = TestTimeAdaptation(model, settings, cache.encoder(settings.decomposition))
    data = UnlabelledBatches(
        datamodule,
        settings.adapt_on,
        settings.fraction,
        settings.batch_size,
        settings.window,
        model.seed,
        settings.caveats,
    )
    return adaptation, data


def add_to_test(trainer: Trainer, adaptation: TestTimeAdaptation) -> None:
    """Have the next test run through the learned merge and its start too, beside those of the MergeCallback."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, MergeCallback)]
    if not found:
        found = [MergeCallback({})]
        trainer.callbacks.insert(0, found[0])
    label = adaptation.settings.label
    found[0].mergers |= {start_name(label): adaptation.start(), label: adaptation.merged()}


def start_name(label: str) -> str:
    """Return what tables call the merge from which that of this name was learned."""
    return f"{label}{START}"


def check_name(trainer: Trainer, settings: Adaptation) -> None:
    """Raise `SheetbendError` if the name of the learned merge stands for something else."""
    taken = {name for one in trainer.callbacks if isinstance(one, MergeCallback) for name in one.mergers}
    if {settings.label, start_name(settings.label)} & {*RESERVED, *taken}:
        in_use = "callbacks.MergeCallback has a merge of this name, or of that with -start behind it"
        what = ", ".join(RESERVED) if settings.label in RESERVED else in_use
        raise SheetbendError(
            f"adaptation.name {settings.label!r} stands for something else ({what}); give another adaptation.name"
        )


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
