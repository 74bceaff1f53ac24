"""Fine-tune all weights of the quickstart's backbone, one model a task.

    python examples/adaptation/finetune_whole.py --output runs/whole

Writes OUTPUT/<task>/, a folder that transformers reads, in which `sheetbend` sees a fully fine-tuned model
(``--model.adapters``). Data, heads, steps, warm-up, weight decay and patience are those of the configuration; what is
chosen for adapters alone, the learning rate, is given here.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

import torch  # noqa: E402  the path comes first
from lightning.pytorch import LightningDataModule, Trainer  # noqa: E402

from callbacks.progress import PlainProgress  # noqa: E402
from launch.cli import BENIGN_WARNINGS, quiet_libraries  # noqa: E402
from launch.lightning_cli import ConfigurationOnly  # noqa: E402
from lightning_modules import ImageClassifier  # noqa: E402
from lightning_modules.full_checkpoints import Unadapted, write_model  # noqa: E402
from mergers import SheetbendError  # noqa: E402
from mergers.files import atomic_folder  # noqa: E402

CONFIG = ROOT / "configs" / "quickstart.yaml"
FACTS = "finetuning.json"
# Validation accuracy after the six epochs of the quickstart, seed 0, on digits and scenes: 97.8 and 61.7 % with 1e-4,
# 98.9 and 72.2 % with 3e-4, 98.3 and 81.7 % with 1e-3. Larger ones were not tried.
LEARNING_RATE = 1e-3


class WholeImageClassifier(ImageClassifier):
    """An `ImageClassifier` that trains every weight of its encoder, on one task."""

    def build(
        self, tasks: Sequence[Any], fresh: bool = True, run_folder: str | Path | None = None, data: Any = None
    ) -> None:
        """Build the encoder and the head of the only task; see `ImageClassifier.build`."""
        if len(tasks) != 1:
            raise SheetbendError(f"{len(tasks)} tasks would share one encoder; give one")
        super().build(tasks, fresh, run_folder, data)
        self.model = Unadapted(self.model.unload())  # without the adapter that every task of `LoRATasks` gets
        self.model.requires_grad_(True)

    def task_parameters(self, task: str) -> dict[str, torch.nn.Parameter]:
        """Return all weights of the encoder."""
        return {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}

    def activate(self, task: str) -> None:
        """Do nothing: there is one model."""


def finetune(model: WholeImageClassifier, data: LightningDataModule, folder: Path, **flags: Any) -> float:
    """Train ``model`` and write its best state to ``folder``.

    Args:
        model: not yet built.
        data: of one task.
        folder: appears whole or not at all.
        **flags: of the Trainer.

    Returns:
        The validation accuracy of that state, a fraction.
    """
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **flags,
    )
    trainer.fit(model, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    (progress,) = model.progress.values()
    with atomic_folder(folder) as temporary:
        write_model(model.model, {}, temporary)
        facts = {"seed": model.seed, "learning_rate": model.learning_rate, "max_epochs": trainer.max_epochs}
        measured = {"val_accuracy": progress.best, "batches": progress.best_batches}
        (temporary / FACTS).write_text(json.dumps({**facts, **measured}, indent=1) + "\n", encoding="utf-8")
    return progress.best


def is_done(folder: Path, facts: dict[str, Any]) -> bool:
    """Return whether ``folder`` holds the model that training with ``facts`` gives; refuse another one.

    Raises:
        SheetbendError: the folder holds something else.
    """
    if not folder.exists():
        return False
    try:
        saved = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise SheetbendError(f"{folder} has no {FACTS} of a finished training; give another --output") from None
    changed = [key for key in facts if saved.get(key) != facts[key]]
    if changed:
        key = changed[0]
        raise SheetbendError(
            f"{folder} was trained with {key} {saved.get(key)}, now it is {facts[key]}; give another --output"
        )
    return True


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fine-tune all weights of a backbone, one model a task.")
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder that gets one folder a task")
    add("--config", type=Path, default=CONFIG, help="of a fit of adapters (default: configs/quickstart.yaml)")
    add("--tasks", nargs="+", help="of those of the configuration (default: all)")
    add("--seed", type=int, default=0, help="of the order of examples (default: 0)")
    add("--learning_rate", type=float, default=LEARNING_RATE, help=f"peak (default: {LEARNING_RATE:g})")
    add("--max_epochs", type=int, help="(default: that of the configuration)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train what is not there yet."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    for pattern in BENIGN_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    given = ["--config", str(arguments.config), "--seed_everything", str(arguments.seed)]
    own = "examples.adaptation.finetune_whole.WholeImageClassifier"
    given += ["--model", own, "--model.learning_rate", str(arguments.learning_rate)]
    if arguments.max_epochs is not None:
        given += ["--trainer.max_epochs", str(arguments.max_epochs)]
    try:
        for task in arguments.tasks or ConfigurationOnly(given).datamodule.task_names:
            read = ConfigurationOnly([*given, "--data.tasks", f"[{task}]"])
            epochs = read.config["fit"]["trainer"]["max_epochs"]
            folder = arguments.output / task
            facts = {"seed": arguments.seed, "learning_rate": arguments.learning_rate, "max_epochs": epochs}
            if is_done(folder, facts):
                print(f"{folder}: trained already", flush=True)
                continue
            accuracy = finetune(read.model, read.datamodule, folder, max_epochs=epochs, callbacks=[PlainProgress()])
            print(f"{folder}: validation accuracy {100 * accuracy:.1f} %", flush=True)
    except SheetbendError as error:
        print(f"finetune_whole.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
