"""The tables that the benchmark prints."""

import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Record
from benchmarks.works import LABELS, WORKS, Target, Work


@dataclass
class Row:
    """One contender at one work.

    Attributes:
        work: Name.
        contender: Name.
        records: One a run.
        agreement: What `benchmarks.measure.relative_error` says of it and ours, or ``error``.
        error: Why it did not run.
    """

    work: str
    contender: str
    records: list[Record] = field(default_factory=list)
    agreement: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(record.seconds for record in self.records)

    @property
    def peak_mb(self) -> float:
        """The median."""
        return statistics.median(record.peak_mb for record in self.records)

    @property
    def agrees(self) -> bool:
        """Whether its result is ours, to the tolerance of the work; after a truncation, whether ours lost no more."""
        if "error" in self.agreement:
            return False
        tolerance = WORKS[self.work].tolerance
        if "ours_lost" in self.agreement:
            return self.agreement["ours_lost"] <= self.agreement["theirs_lost"] * (1 + tolerance) + 1e-5
        return self.agreement.get("total", 0.0) <= tolerance

    @property
    def failed(self) -> bool:
        """Whether this row must not pass unseen."""
        return not self.agrees or (bool(self.error) and not self.error.startswith("not given"))


def progress(text: str) -> None:
    """Say on stderr what is being done."""
    print(f"... {text}", file=sys.stderr, flush=True)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def show_works(works: Iterable[Work]) -> None:
    """Print what can be measured."""
    table = Table(title="Works", title_justify="left")
    for column in ("group", "name", "what", "contenders"):
        table.add_column(column, overflow="fold")
    for work in works:
        table.add_row(work.group, work.name, work.describe(), ", ".join(work.contenders))
    _console().print(table)


def show(rows: list[Row], facts: dict[str, Any]) -> None:
    """Print the figures, the notes below them, and what was aimed at."""
    console = _console()
    console.print(figures(rows))
    for name in dict.fromkeys(row.work for row in rows):
        console.print(f"{name}: {WORKS[name].describe()}.")
    console.print(
        "Seconds: median, and range of the runs, each in a new process; from adapters in memory to the merged result, "
        "disk to disk where the work says so. Memory: largest resident memory of the process, after its imports and at "
        "its peak, in MB of 10^6 bytes. Ratios: contender by ours. Difference: relative, from ours, over all modules."
    )
    for text in notes(rows):
        console.print(f"- {text}")
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    reached = targets(rows)
    if reached.row_count:
        console.print(reached)


def figures(rows: list[Row]) -> Table:
    """Return one line a row."""
    table = Table(title="Merging", title_justify="left")
    table.add_column("work", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    for column in ("seconds", "range", "CPU s", "MB before", "MB peak", "time", "memory"):
        table.add_column(column, justify="right")
    table.add_column("difference", overflow="fold")
    for index, row in enumerate(rows):
        new = index == 0 or rows[index - 1].work != row.work
        title = row.work if new else ""
        if new and index:
            table.add_section()
        if row.error:
            table.add_row(title, LABELS[row.contender], *[""] * 7, row.error)
            continue
        ours = _ours(rows, row.work)
        is_ours = ours is None or ours is row
        times = [record.seconds for record in row.records]
        table.add_row(
            title,
            LABELS[row.contender],
            _number(row.seconds),
            f"{_number(min(times))}..{_number(max(times))}",
            _number(statistics.median(record.cpu_seconds for record in row.records)),
            f"{statistics.median(record.baseline_mb for record in row.records):.0f}",
            f"{row.peak_mb:.0f}",
            "" if is_ours else f"{row.seconds / ours.seconds:.3g}",
            "" if is_ours else f"{row.peak_mb / ours.peak_mb:.3g}",
            _agreement(row),
        )
    return table


def _ours(rows: list[Row], work: str) -> Row | None:
    """Return the row of a work to which others are compared."""
    return next((row for row in rows if row.work == work and row.contender.startswith("ours") and not row.error), None)


def _number(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def _agreement(row: Row) -> str:
    if "error" in row.agreement:
        return f"not compared: {row.agreement['error']}"
    if not row.agreement:
        return ""
    text = f"{row.agreement['total']:.1e}, worst module {row.agreement['worst']:.1e}"
    if "ours_lost" in row.agreement:
        text += f"; cutting lost {row.agreement['theirs_lost']:.4f}, ours {row.agreement['ours_lost']:.4f}"
    return text if row.agrees else f"DISAGREES: {text}"


def notes(rows: list[Row]) -> list[str]:
    """Return what the works and the contenders say of their runs."""
    texts = []
    for row in rows:
        said = {name: value for record in row.records[:1] for name, value in record.notes.items() if value}
        if said:
            texts.append(f"{row.work}, {LABELS[row.contender]}: " + "; ".join(f"{k}: {v}" for k, v in said.items()))
    texts += [f"{name}: {WORKS[name].note}" for name in dict.fromkeys(row.work for row in rows) if WORKS[name].note]
    return texts


def targets(rows: list[Row]) -> Table:
    """Return what was aimed at and what was measured, for the works that have both."""
    table = Table(title="Reach", title_justify="left")
    for column in ("work", "aimed at", "measured", ""):
        table.add_column(column)
    for name in dict.fromkeys(row.work for row in rows):
        target, ours = WORKS[name].target, _ours(rows, name)
        if target is None or ours is None:
            continue
        other = next((row for row in rows if row.work == name and row.contender == target.contender), None)
        for aimed, measured, reached in _checks(target, ours, other if other and not other.error else None):
            table.add_row(name, aimed, measured, "reached" if reached else "missed")
    return table


def _checks(target: Target, ours: Row, other: Row | None) -> list[tuple[str, str, bool]]:
    """Return (aimed at, measured, whether it is reached) for each part of a target that can be judged."""
    checks = []
    if other and target.faster:
        ratio = other.seconds / ours.seconds
        checks.append((f"{target.faster:g} times faster than {LABELS[other.contender]}", f"{ratio:.3g}", target.faster))
    if other and target.memory:
        ratio = other.peak_mb / ours.peak_mb
        checks.append((f"1/{target.memory:g} of the memory", f"1/{ratio:.3g}", target.memory))
    judged = [(aimed, text, float(text.removeprefix("1/")) >= least) for aimed, text, least in checks]
    if target.seconds:
        judged.append((f"at most {target.seconds:g} s", f"{_number(ours.seconds)} s", ours.seconds <= target.seconds))
    if target.peak_mb:
        judged.append((f"at most {target.peak_mb:g} MB", f"{ours.peak_mb:.0f} MB", ours.peak_mb <= target.peak_mb))
    return judged
