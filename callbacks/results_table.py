"""What a test measured, as the tables that a terminal shows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from callbacks.results import BY_NAME, REFERENCES, Results, counted
from callbacks.wide_table import WideTable

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
T = TypeVar("T")


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

    >>> from lightning_modules import Score
    >>> metrics_note(Results((Score("finetuned", "cola", "matthews", 0.5, 9),)))
    'cola: Matthews correlation.'
    """
    other = {task: results.metric(task) for task in results.tasks if results.metric(task) not in ("accuracy", None)}
    named = {name: [task for task, metric in other.items() if metric == name] for name in other.values()}
    sentences = [f"{', '.join(tasks)}: {METRIC_WORDS.get(name, name)}" for name, tasks in named.items()]
    rest = len(other) < len(results.tasks)
    return "; ".join(sentences) + ("; the others: accuracy." if rest else ".") if sentences else ""


def unlearned_note(results: Results) -> str:
    """Return on which tasks finetuning has gained nothing, so that shares of it mislead; empty where on none.

    >>> from lightning_modules import Score
    >>> scores = (Score("pretrained", "a", "accuracy", 0.6, 9), Score("finetuned", "a", "accuracy", 0.5, 9))
    >>> unlearned_note(Results(scores))
    'Finetuned is no better than pretrained on a: norm. mean is no share of anything there.'
    """
    tasks = []
    for task in results.tasks:
        finetuned, pretrained = (results.value(name, task) for name in ("finetuned", "pretrained"))
        if None not in (finetuned, pretrained) and 0 < finetuned <= pretrained:
            tasks.append(task)
    said = f"Finetuned is no better than pretrained on {', '.join(tasks)}: norm. mean is no share of anything there."
    return said if tasks else ""


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
    shares = any(column.heading == "norm. mean" for column in chosen)
    notes += [NORMALISED_NOTE.format(results.measure), unlearned_note(results)] * shares
    notes += [ORACLE_NOTE] * oracle
    # Beside accuracies among a task's own labels, the other label space has to be named.
    headings = [f"joint {column.heading}" if column.joint and mixed else column.heading for column in chosen]
    table = numbers_table(title(results) if heading is None else heading, headings, notes)
    marked = [cells(results, column) for column in chosen]
    references = [name for name in results.variants if name in REFERENCES]
    for name in results.variants:
        label = f"{name}*" if oracle and name == "finetuned" else name
        numbers = [f"[bold]{text}[/bold]" if best else text for text, best in (cell[name] for cell in marked)]
        table.add_row(escape(label), *numbers, end_section=bool(results.merged) and name in references[-1:])
    return table


def numbers_table(heading: str, headings: Sequence[str], notes: Sequence[str]) -> Table:
    """Return an empty table: a column of variants and one of numbers for each heading, with a line a note below it.

    Args:
        heading: of the table.
        headings: of its columns; each of their words has a line.
        notes: those that are empty are left out.
    """
    said = [note for note in notes if note]
    table = WideTable(
        title=heading,
        caption="\n".join(["", *said]) if said else None,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
    table.add_column("variant", no_wrap=True)
    for words in headings:
        table.add_column(escape(re.sub(r"([-_])| ", r"\1\n", words)), justify="right", no_wrap=True)
    return table


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
