"""Measures the zero-shot accuracy of the small CLIP on the quickstart's tasks and writes its model card, README.md."""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, CLIPModel
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from base_model.model import class_vectors, classify  # noqa: E402
from base_model.pool import PIXELS  # noqa: E402
from mergers.errors import SheetbendError  # noqa: E402
from mergers.files import atomic_write  # noqa: E402

TEMPLATE = Path(__file__).with_name("card.md")
TASKS = ("digits", "mnist", "textures", "photographs", "scenes", "faces", "fashion_mnist")


class ZeroShot(NamedTuple):
    """Zero-shot accuracy of one task; ``majority`` is what always answering the commonest class gives."""

    task: str
    classes: int
    images: int
    majority: float
    accuracy: float


def measure(folder: Path, names: list[str], split: str = "test") -> list[ZeroShot]:
    """Return the zero-shot accuracy of the model in ``folder`` on each task; tasks without data are left out, said."""
    from datamodules import QuickstartDataModule

    logging.disable_progress_bar()
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for name in names:
        try:
            data = QuickstartDataModule(tasks=[name], batch_size=256)
            data.prepare_data()
            data.setup("test" if split == "test" else "fit")
        except SheetbendError as error:
            print(f"{name}: left out: {error}", flush=True)
            continue
        task = data.tasks[0]
        vectors = class_vectors(model, tokenizer, task.class_names, task.templates)
        loaders = data.test_dataloader() if split == "test" else data.val_dataloader()
        predicted, truth = [], []
        for batch in loaders[0]:
            images = batch.inputs
            if images.shape[-2:] != (PIXELS, PIXELS):
                images = torch.nn.functional.interpolate(
                    images.float() / 255, (PIXELS, PIXELS), mode="bilinear", antialias=True
                )
            predicted.append(classify(model, images, vectors))
            truth.append(batch.labels)
        answers, labels = torch.cat(predicted), torch.cat(truth)
        accuracy = (answers == labels).float().mean().item()
        majority = labels.bincount().max().item() / len(labels)
        rows.append(ZeroShot(name, len(task.class_names), len(labels), majority, accuracy))
        print(
            f"{name}: {100 * accuracy:.1f} % of {len(labels)} images, chance {100 / rows[-1].classes:.1f} %", flush=True
        )
    return rows


def table(rows: list[ZeroShot]) -> str:
    """Return the rows as a Markdown table.

    >>> print(table([ZeroShot("digits", 10, 360, 0.104, 0.751)]))
    | task | classes | test images | chance % | commonest class % | zero-shot % |
    | --- | ---: | ---: | ---: | ---: | ---: |
    | digits | 10 | 360 | 10.0 | 10.4 | 75.1 |
    """
    lines = [
        "| task | classes | test images | chance % | commonest class % | zero-shot % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        shares = (100 / r.classes, 100 * r.majority, 100 * r.accuracy)
        lines.append(
            f"| {r.task} | {r.classes} | {r.images} | " + " | ".join(f"{share:.1f}" for share in shares) + " |"
        )
    return "\n".join(lines)


def write_card(folder: Path, rows: list[ZeroShot]) -> None:
    """Fill the template with what training recorded in ``folder`` and with ``rows``; write README.md there."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    options = record["options"]
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    values = {
        **options,
        **{key: value for key, value in record.items() if key != "options"},
        "parameters_millions": f"{record['parameters'] / 1e6:.2f}",
        "megabytes": f"{size / 1e6:.1f}",
        "render_minutes": f"{record['render_seconds'] / 60:.1f}",
        "train_minutes": f"{record['train_seconds'] / 60:.1f}",
        "table": table(rows) if rows else "Not measured.",
        "command": " ".join(
            ["python base_model/train.py --output lightning_modules/base_models/tiny-clip", *changed_options(options)]
        ),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("{" + key + "}", str(value))
    with atomic_write(folder / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def changed_options(options: dict[str, object]) -> list[str]:
    """Return the command line words for those recorded options that are not today's defaults."""
    from base_model.train import parse_arguments

    defaults = vars(parse_arguments(["--output", "x"]))
    return [f"--{key.replace('_', '-')} {value}" for key, value in options.items() if defaults.get(key) != value]


def main(argv: list[str] | None = None) -> None:
    """Measure and write, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = ROOT / "lightning_modules" / "base_models" / "tiny-clip"
    parser.add_argument("--model", type=Path, default=default, help="folder that base_model/train.py wrote")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="quickstart tasks to measure")
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="split to measure; val prints and writes no card"
    )
    arguments = parser.parse_args(argv)
    rows = measure(arguments.model, arguments.tasks, arguments.split)
    if arguments.split == "test":
        write_card(arguments.model, rows)


if __name__ == "__main__":
    main()
