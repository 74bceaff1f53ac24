"""The run folder: what a run writes there, and whether an earlier run there can go on."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from launch import interrupts
from launch.yaml_text import load_yaml
from mergers import SheetbendError
from mergers.adapters.pickled import reason_to_refuse
from mergers.files import atomic_write

CHECKPOINT = Path("checkpoints") / "last.ckpt"
OUTPUTS = (
    "adaptations",
    "analyses",
    "best.yaml",
    "candidates",
    "candidates.csv",
    "candidates.json",
    "adapters",
    "checkpoints",
    "coefficients.csv",
    "config.yaml",
    "entropy.csv",
    "history.csv",
    "kept_rank.csv",
    "learned.safetensors",
    "merged",
    "optuna.journal",
    "plots",
    "report.md",
    "results.csv",
    "results.json",
    "searches",
    "tensorboard",
    "test_config.yaml",
)
# Flags of the Trainer that change what training computes. The others may differ between an interrupted run and
# the one that goes on.
TRAINER_SETTINGS = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_val_batches",
    "max_epochs",
    "max_steps",
    "overfit_batches",
    "precision",
    "val_check_interval",
)
# Those of the Trainer that change what `adapt` computes; it sets the others itself.
ADAPTATION_SETTINGS = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "precision")
# The name of an adaptation is that of its folder, whether it was given or made.
UNIMPORTANT = ("adaptation.name", "data.init_args.num_workers", "data.init_args.eval_batch_size")


def training_settings(config: dict[str, Any], flags: Collection[str] = TRAINER_SETTINGS) -> dict[str, Any]:
    """Return what decides what is learned, flat: {dotted key: value}.

    Args:
        config: of a run.
        flags: of the Trainer, that count; those of `ADAPTATION_SETTINGS` go with the settings of an adaptation.

    >>> training_settings({"seed_everything": 0, "model": {"lr": 1}, "trainer": {"max_epochs": 2, "profiler": "x"}})
    {'seed_everything': 0, 'model.lr': 1, 'trainer.max_epochs': 2}
    """
    trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key in flags}
    sections = ("seed_everything", "model", "data", *(["adaptation"] if flags == ADAPTATION_SETTINGS else []))
    parts = {key: config[key] for key in sections if key in config}
    flat = dict(_flatten({**parts, "trainer": trainer}))
    return {key: value for key, value in flat.items() if key not in UNIMPORTANT}


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix != "trainer":
        yield prefix, value


def resume_point(folder: Path, config: dict[str, Any], flags: Collection[str] = TRAINER_SETTINGS) -> Path | None:
    """Return the checkpoint from which the same run goes on, or none where nothing has been learned yet.

    Args:
        folder: of the run.
        config: of what is to be run.
        flags: as for `training_settings`.

    Raises:
        SheetbendError: the folder holds a run with other settings.
    """
    checkpoint = folder / CHECKPOINT
    elsewhere = "--adaptation.name" if flags == ADAPTATION_SETTINGS else "--trainer.default_root_dir"
    if not any(
        (folder / name).exists() for name in (CHECKPOINT, "adapters", "results.json", "merged", "learned.safetensors")
    ):
        return None
    saved_file = folder / "config.yaml"
    if not saved_file.is_file():
        raise SheetbendError(
            f"{folder} holds results, but no config.yaml of its run; give another {elsewhere}, or --overwrite true to "
            "replace them"
        )
    try:
        content = load_yaml(saved_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("trainer") or {}, dict):
        raise SheetbendError(f"{saved_file} is damaged; give another {elsewhere}, or --overwrite true")
    saved = training_settings(content, flags)
    given = training_settings(config, flags)
    changed = [key for key in {**saved, **given} if saved.get(key) != given.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise SheetbendError(
            f"{folder} holds a run with other settings ({key}: {saved.get(key)} there, {given.get(key)} now{more}); "
            f"give another {elsewhere}, or --overwrite true to replace that run"
        )
    return checkpoint if checkpoint.is_file() else None


def read_checkpoint(checkpoint: str | Path | None, keys: Collection[str], otherwise: str) -> dict[str, Any]:
    """Return what a checkpoint holds, nothing of none; refuse one that cannot be read, before anything is written.

    Args:
        checkpoint: the file.
        keys: what it must hold.
        otherwise: what the message says of one that does not.
    """
    if checkpoint is None:
        return {}
    if not Path(checkpoint).is_file():
        raise SheetbendError(f"checkpoint {checkpoint} does not exist; give the path of a .ckpt file")
    try:
        refused = reason_to_refuse(Path(checkpoint))
        content = None if refused else torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:
        content = None
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise SheetbendError(f"checkpoint {checkpoint} is damaged or {otherwise} with --overwrite true")
    return content


def clear(folder: Path) -> None:
    """Remove what a run has written to ``folder``, and nothing else."""
    for name in OUTPUTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class SaveConfig(SaveConfigCallback):
    """Save the whole configuration in the run folder, ``config.yaml`` of fit and ``test_config.yaml`` of test.

    Any subcommand reads either.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it at the first stage that writes anything; a search validates before it tests."""
        if stage != "validate":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        path = Path(trainer.default_root_dir) / ("config.yaml" if stage in ("fit", "adapt") else "test_config.yaml")
        with atomic_write(path) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_none=False, skip_link_targets=False))


class Interruption(Callback):
    """Say how to go on after Ctrl-C or SIGTERM."""

    def __init__(self):
        self.happened = False  # Ctrl-C, of which Lightning makes exit status 1
        self.fitted = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that what follows is a test."""
        self.fitted = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print where the run stands."""
        terminated = isinstance(exception, SystemExit) and exception.code == interrupts.TERMINATED
        if not terminated and not isinstance(exception, KeyboardInterrupt):
            return
        self.happened = not terminated
        interrupts.listen()  # Lightning has switched Ctrl-C off, and may take its time to tidy up
        interrupts.say(f"\n{'terminated' if terminated else 'interrupted'}: {self._kept(trainer)}")

    def _kept(self, trainer: Trainer) -> str:
        folder = Path(trainer.default_root_dir)
        measured, checkpoint = folder / "candidates.json", folder / CHECKPOINT
        if measured.is_file():  # of a search
            return f"{measured} holds what was measured; give the same command again to go on from there"
        if self.fitted:
            return "training is finished and kept; the same command tests again"
        if trainer.state.fn == "fit" and checkpoint.is_file():
            return f"{checkpoint} holds what was finished; give the same command again to go on from there"
        return "nothing was finished; the same command starts again"
