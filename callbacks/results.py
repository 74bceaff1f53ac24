"""What a test measured: the numbers, what is derived from them, and the table a terminal shows."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from callbacks.wide_table import WideTable
from lightning_modules.scores import Score, headlines
from lightning_modules.variants import ENSEMBLE, FINETUNED, PRETRAINED
from mergers.errors import SheetbendError

# What merges are compared with.
REFERENCES = (PRETRAINED, FINETUNED, ENSEMBLE)
BY_NAME = "joint_by_name"
ORACLE_NOTE = (
    "* Joint columns of finetuned are an oracle: each example runs through its own task's adapter, "
    "so its task is known. The merged models are not told."
)
NORMALISED_NOTE = "norm. mean: mean over tasks of {0} / finetuned {0}."
METRIC_WORDS = {
    "matthews": "Matthews correlation",
    "accuracy_and_f1": "mean of accuracy and F1",
    "spearman": "Spearman's rho",
    "f1": "mean F1 of words",
}
CSV_COLUMNS = ("variant", "task", "metric", "value", "count", "normalised")
FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """The scores of one run on one split, and how they came about.

    Variants and tasks keep the order in which the scores name them. What is derived is a fraction, or
    ``None`` where the run lacks what it needs.

    Attributes:
        scores: what was measured, one score a (variant, task, metric).
        meta: run name, seed, versions, split fingerprints, elapsed seconds, machine, peak memory, command, caveats:
            anything JSON can hold. Results of older versions lack some of it.
        split: the split it was measured on, ``test`` or ``val``.
        descriptions: variant name to its settings, one line each.

    >>> results = Results((Score("finetuned", "digits", "accuracy", 0.8, 50),
    ...                    Score("ties", "digits", "accuracy", 0.6, 50)))
    >>> round(results.normalised("ties", "digits"), 6)
    0.75
    """

    scores: tuple[Score, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    descriptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self._by_key) != len(self.scores):
            raise ValueError("two scores share one variant, task and metric")

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, str], Score]:
        return {(score.variant, score.task, score.metric): score for score in self.scores}

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant, in order."""
        return tuple(dict.fromkeys(score.variant for score in self.scores))

    @property
    def merged(self) -> tuple[str, ...]:
        """The variants that are one model for all tasks and not the pretrained one, in order."""
        return tuple(name for name in self.variants if name not in REFERENCES)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task, in order, without ``all``."""
        return tuple(dict.fromkeys(score.task for score in self.scores if score.task != "all"))

    @property
    def adapts(self) -> bool:
        """Whether the run adapted a merge, where others train."""
        return bool(self.meta.get("adapts"))

    @cached_property
    def _joint(self) -> dict[str, list[int]]:
        found = (re.fullmatch(r"(joint\w*)_hits@(\d+)", score.metric) for score in self.scores)
        pairs = sorted({(match[1], int(match[2])) for match in found if match})
        return {space: [k for other, k in pairs if other == space] for space, _ in pairs}

    @property
    def spaces(self) -> tuple[str, ...]:
        """The label spaces in which all tasks compete: ``joint``, and ``joint_by_name`` if it differs."""
        return tuple(self._joint)

    @property
    def hits(self) -> tuple[int, ...]:
        """The k for which joint hits@k was measured, ascending."""
        return tuple(self._joint.get("joint", ()))

    def score(self, variant: str, task: str, metric: str) -> Score | None:
        """Return the score as measured, or ``None``."""
        return self._by_key.get((variant, task, metric))

    def count(self, task: str) -> int | None:
        """Return on how many examples of ``task`` its metric was measured."""
        counts = [s.count for s in self.scores if s.task == task and s.metric == self.metric(task)]
        return counts[0] if counts else None

    @property
    def examples(self) -> int:
        """The examples of all tasks together."""
        return sum(self.count(task) or 0 for task in self.tasks)

    @cached_property
    def _headlines(self) -> dict[str, str]:
        return headlines(self.scores)

    def metric(self, task: str) -> str | None:
        """Return the name of the metric that stands for ``task`` in tables, ``accuracy`` for most."""
        return self._headlines.get(task)

    @property
    def measure(self) -> str:
        """What the tasks' values are in one word: ``accuracy``, or ``score`` where some have another metric."""
        return "accuracy" if all(name == "accuracy" for name in self._headlines.values()) else "score"

    def value(self, variant: str, task: str) -> float | None:
        """Return the metric of ``task``, among the task's own labels."""
        score = self.score(variant, task, self.metric(task) or "")
        return None if score is None else score.value

    def normalised(self, variant: str, task: str) -> float | None:
        """Return the value / value of ``finetuned`` on the same task of this run; none where that is not above 0."""
        value, finetuned = self.value(variant, task), self.value("finetuned", task)
        return None if value is None or finetuned is None or finetuned <= 0 else value / finetuned

    def mean_value(self, variant: str) -> float | None:
        """Return the mean over tasks of the value; every task weighs the same."""
        return _mean(self.value(variant, task) for task in self.tasks)

    def mean_normalised(self, variant: str) -> float | None:
        """Return the mean over tasks of the per-task ratios (not the ratio of the means)."""
        return _mean(self.normalised(variant, task) for task in self.tasks)

    def joint(self, variant: str, k: int, task: str = "all", space: str = "joint") -> float | None:
        """Return hits@k where the labels of all tasks compete.

        Args:
            variant: the weights under test.
            k: the label counts as found among the k highest scores.
            task: a task's name; ``all`` for every example of every task; ``mean`` for the mean over tasks.
            space: the label space; ``joint_by_name`` is the one in which equal names are one label.
        """
        if task == "mean":
            return _mean(self.joint(variant, k, name, space) for name in self.tasks)
        score = self.score(variant, task, f"{space}_hits@{k}")
        return None if score is None else score.value

    def _joint_pairs(self) -> list[tuple[str, int]]:
        return [(space, k) for space, ks in self._joint.items() for k in ks]

    def to_json(self) -> str:
        """Return the scores, the derived averages and the metadata as JSON text."""
        derived = {
            name: {
                f"mean_{self.measure}": self.mean_value(name),
                "mean_normalised": self.mean_normalised(name),
                **{f"mean_{s}_hits@{k}": self.joint(name, k, "mean", s) for s, k in self._joint_pairs()},
            }
            for name in self.variants
        }
        content = {
            "format": FORMAT,
            "split": self.split,
            "meta": self.meta,
            "descriptions": self.descriptions,
            "derived": derived,
            "scores": [asdict(score) for score in self.scores],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "results.json") -> "Results":
        """Read what ``to_json`` wrote; averages are derived anew.

        Args:
            text: the JSON text.
            name: what to call it in the error message.

        Raises:
            SheetbendError: the text is no results file of this format.
        """
        try:
            content = json.loads(text)
            version = content["format"]
            if version == FORMAT:
                scores = tuple(_checked(Score(**score)) for score in content["scores"])
                return cls(scores, dict(content["meta"]), content["split"], dict(content["descriptions"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SheetbendError(f"{name} holds no results ({error}); run the test again to write it") from error
        raise SheetbendError(f"{name} has format {version!r}, not {FORMAT}; run the test again")

    def to_csv(self) -> str:
        """Return tidy CSV text, one row a number; rows of task ``mean`` are derived."""
        rows = []
        for score in self.scores:
            own = score.metric == self.metric(score.task)
            normalised = self.normalised(score.variant, score.task) if own else None
            rows.append((*asdict(score).values(), normalised))
        for name in self.variants:
            rows.append((name, "mean", self.measure, self.mean_value(name), "", self.mean_normalised(name)))
            rows += [
                (name, "mean", f"{space}_hits@{k}", self.joint(name, k, "mean", space), "", None)
                for space, k in self._joint_pairs()
            ]
        return csv_text(CSV_COLUMNS, (row for row in rows if row[3] is not None))

    @classmethod
    def from_csv(cls, text: str, name: str = "results.csv") -> "Results":
        """Read the scores of what ``to_csv`` wrote; the metadata is only in the JSON.

        Raises:
            SheetbendError: a column is missing or a number is none.
        """
        try:
            rows = [row for row in csv.DictReader(io.StringIO(text)) if row["task"] != "mean"]
            return cls(
                tuple(
                    Score(row["variant"], row["task"], row["metric"], float(row["value"]), int(row["count"]))
                    for row in rows
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SheetbendError(f"{name} holds no results ({error}); run the test again to write it") from error


def _checked(score: Score) -> Score:
    texts = (score.variant, score.task, score.metric)
    numbers = isinstance(score.value, int | float) and isinstance(score.count, int)
    if not numbers or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"not a score: {score}")
    return score


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV text with Unix line ends; ``None`` is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _mean(values: Iterable[float | None]) -> float | None:
    # A mean over some of the tasks would not compare with a mean over all of them.
    values = list(values)
    return None if not values or None in values else math.fsum(values) / len(values)


@dataclass(frozen=True)
class Column:
    """One column of the table: its heading, its number for a variant, and whether it is for joint labels."""

    heading: str
    value: Callable[[str], float | None]
    joint: bool = False


def own_columns(results: Results) -> list[Column]:
    """Return the value of each task, their mean and, with ``finetuned`` at hand, the normalised mean."""
    tasks = [Column(task, lambda name, task=task: results.value(name, task)) for task in results.tasks]
    normalised = [Column("norm. mean", results.mean_normalised)] if "finetuned" in results.variants else []
    return [*tasks, Column("mean", results.mean_value), *normalised]


def joint_columns(results: Results, task: str = "all", space: str = "joint") -> list[Column]:
    """Return hits@k in a label space of all tasks, over all examples or (``mean``) averaged over tasks."""
    suffix = "" if task == "all" else f" {task}"
    every = [
        Column(f"hits@{k}{suffix}", lambda name, k=k: results.joint(name, k, task, space), joint=True)
        for k in results.hits
    ]
    return [column for column in every if any(column.value(name) is not None for name in results.variants)]


def cells(results: Results, column: Column) -> dict[str, tuple[str, bool]]:
    """Return for each variant the number in % with one decimal, and whether it is the best merge's.

    What is equal as printed is equally best.
    """
    values = {name: column.value(name) for name in results.variants}
    texts = {name: "-" if value is None else f"{100 * value:.1f}" for name, value in values.items()}
    merged = {name: float(texts[name]) for name in results.merged if values[name] is not None}
    best = max(merged.values(), default=None)
    return {name: (text, merged.get(name, -1.0) == best) for name, text in texts.items()}


def title(results: Results) -> str:
    """Return what the numbers are, in words."""
    split = {"val": "Validation"}.get(results.split, results.split.capitalize())
    return f"{split} {results.measure} in %, {results.examples:,} examples of {counted(len(results.tasks), 'task')}"


def metrics_note(results: Results) -> str:
    """Return which tasks have another metric than accuracy, in words; empty where none has.

    >>> metrics_note(Results((Score("finetuned", "cola", "matthews", 0.5, 9),)))
    'cola: Matthews correlation.'
    """
    other = {task: results.metric(task) for task in results.tasks if results.metric(task) not in ("accuracy", None)}
    named = {name: [task for task, metric in other.items() if metric == name] for name in other.values()}
    sentences = [f"{', '.join(tasks)}: {METRIC_WORDS.get(name, name)}" for name, tasks in named.items()]
    rest = len(other) < len(results.tasks)
    return "; ".join(sentences) + ("; the others: accuracy." if rest else ".") if sentences else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return the number and its noun, in the plural (by default with an s) where it takes one.

    >>> counted(1, "task"), counted(1200, "task"), counted(2, "batch", "batches")
    ('1 task', '1,200 tasks', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def results_table(results: Results, chosen: Sequence[Column] | None = None, heading: str | None = None) -> Table:
    """Return the results as one table, a row for every variant, the best merge of each column in bold.

    Args:
        results: what was measured.
        chosen: the columns; by default each task, mean, normalised mean and joint hits@k over all examples.
        heading: the title; says split and number of examples by default.
    """
    chosen = own_columns(results) + joint_columns(results) if chosen is None else list(chosen)
    mixed = len({column.joint for column in chosen}) > 1
    oracle = "finetuned" in results.variants and any(column.joint for column in chosen)
    notes = [metrics_note(results)] * any(column.heading in results.tasks for column in chosen)
    notes += [NORMALISED_NOTE.format(results.measure)] * any(column.heading == "norm. mean" for column in chosen)
    notes = [note for note in notes if note] + [ORACLE_NOTE] * oracle
    table = WideTable(
        title=title(results) if heading is None else heading,
        caption="\n".join(["", *notes]) if notes else None,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    table.add_column("variant", no_wrap=True)
    for column in chosen:
        # Beside accuracies among a task's own labels, the other label space has to be named.
        heading = f"joint {column.heading}" if column.joint and mixed else column.heading
        table.add_column(heading_lines(heading), justify="right", no_wrap=True)
    marked = [cells(results, column) for column in chosen]
    references = [name for name in results.variants if name in REFERENCES]
    for name in results.variants:
        label = f"{name}*" if oracle and name == "finetuned" else name
        numbers = [f"[bold]{text}[/bold]" if best else text for text, best in (cell[name] for cell in marked)]
        table.add_row(escape(label), *numbers, end_section=bool(results.merged) and name in references[-1:])
    return table


def heading_lines(heading: str) -> str:
    """Return a heading with a line for each of its words."""
    return escape(re.sub(r"([-_])| ", r"\1\n", heading))


def results_view(results: Results, width: int) -> RenderableType:
    """Return one table where it fits into ``width`` characters, else tables that do, one below the other.

    The joint label space then has a table of its own, which also tells the means over tasks. Where even the
    tasks' own accuracies do not fit beside their mean, the means go there too.
    """

    def fits(chosen: list[Column]) -> bool:
        return table_width(results_table(results, chosen)) <= width

    table = results_table(results)
    tables = [table] if table_width(table) <= width else _narrow_tables(results, fits)
    if BY_NAME in results.spaces:
        by_name = joint_columns(results, "all", BY_NAME)
        heading = "One label space for all tasks, labels of equal names as one"
        tables += [results_table(results, chosen, heading) for chosen in split_to_fit(by_name, fits)]
    return tables[0] if len(tables) == 1 else Group(*(part for table in tables for part in (table, "")))


def _narrow_tables(results: Results, fits: Callable[[list[Column]], bool]) -> list[Table]:
    own = own_columns(results)
    joint = joint_columns(results) + joint_columns(results, "mean")
    if not fits(joint):  # results.csv and report.md have all
        joint = [column for column in joint if not column.heading.startswith("hits@10")]
    heading = "One label space for all tasks, hits@k in %: over all examples, and mean over tasks"
    if not fits(own):
        tasks = len(results.tasks)
        own, joint = own[:tasks], own[tasks:] + joint
        heading = "Mean over tasks in %" + ("; joint: one label space for all tasks" if results.hits else "")
    tables = [results_table(results, chosen) for chosen in split_to_fit(own, fits)]
    tables += [results_table(results, chosen, heading) for chosen in split_to_fit(joint, fits)]
    return tables


def table_width(table: Table) -> int:
    """Return how many characters a table takes."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, table).maximum


def split_to_fit(chosen: Sequence[T], fits: Callable[[list[T]], bool]) -> list[list[T]]:
    """Return the columns in as few lists as fit, in their order."""
    parts: list[list[T]] = []
    for column in chosen:
        if parts and fits([*parts[-1], column]):
            parts[-1].append(column)
        else:
            parts.append([column])
    return parts
