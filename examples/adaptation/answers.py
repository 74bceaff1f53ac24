"""How sure a model is, how right, and how often it gives its favourite answer: what entropy says about accuracy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from callbacks.plots import GREY, GRID, INK, PALETTE
from callbacks.results import REFERENCES, csv_text
from lightning_modules import LoRATasks

COLUMNS = ("world", "seed", "variant", "task", "classes", "accuracy", "entropy", "favourite")


@dataclass(frozen=True)
class Answers:
    """What one variant answered to all examples of a task.

    Attributes:
        variant: its name.
        task: the task's name.
        classes: how many there are.
        accuracy: share of right answers.
        entropy: mean over examples, in nats.
        favourite: share of the answer that is given most often.
    """

    variant: str
    task: str
    classes: int
    accuracy: float
    entropy: float
    favourite: float

    @classmethod
    def of(cls, variant: str, task: str, logits: Tensor, labels: Tensor) -> "Answers":
        """Sum up logits (N, C), minus infinity for classes that no example has, and labels (N,).

        >>> Answers.of("merged", "digits", torch.tensor([[0.0, 0.0], [9.0, -9.0]]), torch.tensor([1, 0]))
        Answers(variant='merged', task='digits', classes=2, accuracy=0.5, entropy=0.3466, favourite=1.0)
        """
        answers, entropies = logits.argmax(-1), torch.special.entr(logits.float().softmax(-1)).sum(-1)
        return cls(
            variant,
            task,
            int(logits[0].isfinite().sum()),
            (answers == labels).float().mean().item(),
            round(entropies.mean().item(), 4),
            answers.bincount().max().item() / len(answers),
        )


class AnswersCallback(Callback):
    """Collect the `Answers` of every variant of a test."""

    def __init__(self) -> None:
        self._batches: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LoRATasks, outputs: Any, batch: Any, *indices: int
    ) -> None:
        """Run the batch through every variant, as the test itself does."""
        for name, variant in pl_module.variants.items():
            features = pl_module.features_of(variant, batch.inputs, batch.task)
            logits = pl_module.task_logits(features, batch.task).cpu()
            self._batches.setdefault((name, batch.task), []).append((logits, batch.labels.cpu()))

    def answers(self) -> list[Answers]:
        """Return what the last test has collected."""
        return [
            Answers.of(variant, task, torch.cat([one for one, _ in batches]), torch.cat([one for _, one in batches]))
            for (variant, task), batches in self._batches.items()
        ]


# By seed.
Found = dict[int, list[Answers]]


def mean_of(found: Found, variant: str, task: str, field: str) -> float:
    """Return the mean over seeds of one number of a variant on a task."""
    values = [
        getattr(one, field)
        for of_seed in found.values()
        for one in of_seed
        if (one.variant, one.task) == (variant, task)
    ]
    return sum(values) / len(values)


def order(found: Found, task: str) -> float:
    """Return Spearman's rank correlation of entropy and accuracy over all variants and seeds; -1 is hoped for."""
    own = [one for of_seed in found.values() for one in of_seed if one.task == task]
    pairs = (torch.tensor([getattr(one, field) for one in own]) for field in ("entropy", "accuracy"))
    return spearman_corrcoef(*pairs).item()


def names_of(found: Found, field: str) -> list[str]:
    """Return the variants or the tasks in the order in which they were tested."""
    return list(dict.fromkeys(getattr(one, field) for of_seed in found.values() for one in of_seed))


def markdown(found: Found, starts: dict[str, str]) -> str:
    """Return a table: a line a variant, for each task accuracy, entropy and share of the favourite answer.

    Args:
        found: of all seeds, whose mean is shown.
        starts: the variant that each learned merge starts from.
    """
    tasks, classes = names_of(found, "task"), {one.task: one.classes for of_seed in found.values() for one in of_seed}
    lines = [
        f"| variant | {' | '.join(f'{task} ({classes[task]})' for task in tasks)} |",
        f"| --- |{' ---: |' * len(tasks)}",
    ]
    for variant in names_of(found, "variant"):
        cells = []
        for task in tasks:
            accuracy, entropy, favourite = (
                mean_of(found, variant, task, field) for field in ("accuracy", "entropy", "favourite")
            )
            cells.append(f"{100 * accuracy:.0f} / {entropy:.2f} / {100 * favourite:.0f}")
        start = f" (from {starts[variant]})" if variant in starts else ""
        lines.append(f"| {variant}{start} | {' | '.join(cells)} |")
    lines.append(f"| *rank correlation* | {' | '.join(f'{order(found, task):+.2f}' for task in tasks)} |")
    return "\n".join(lines)


def tidy_csv(found: dict[str, Found]) -> str:
    """Return one line a (world, seed, variant, task)."""
    rows: Iterable[Sequence[Any]] = (
        (world, seed, *(getattr(one, field) for field in COLUMNS[2:]))
        for world, of_world in found.items()
        for seed, of_seed in of_world.items()
        for one in of_seed
    )
    return csv_text(COLUMNS, rows)


def picture(found: Found, starts: dict[str, str]) -> Figure:
    """Draw accuracy against entropy, a panel a task, with an arrow from each start to what was learned from it."""
    tasks = names_of(found, "task")
    figure = Figure(figsize=(2.6 * len(tasks), 3.1), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for task, axes in zip(tasks, panels, strict=True):
        for variant in names_of(found, "variant"):
            x, y = mean_of(found, variant, task, "entropy"), 100 * mean_of(found, variant, task, "accuracy")
            if variant in starts:
                color = PALETTE[1 if variant.endswith("+d") else 0]
                start = starts[variant]
                begin = mean_of(found, start, task, "entropy"), 100 * mean_of(found, start, task, "accuracy")
                arrow = {"arrowstyle": "->", "color": color, "alpha": 0.6, "linewidth": 1}
                axes.annotate("", (x, y), begin, arrowprops=arrow)
                label = "learned, diversity 1" if variant.endswith("+d") else "learned, AdaRank's own loss"
            else:
                color = INK if variant in REFERENCES else GREY
                label = variant if variant in REFERENCES else "static merges"
            marker = {"pretrained": "v", "finetuned": "*"}.get(variant, "o")
            axes.plot(x, y, marker, color=color, markersize=9 if marker == "*" else 5, linestyle="none", label=label)
        axes.set_title(task, fontsize=9.5, color=INK)
        axes.set_xlabel("entropy, nats", color=INK, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(colors=INK, labelsize=8, length=2)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("accuracy, %", color=INK, fontsize=8.5)
    handles, labels = panels[0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8.5)
    return figure
