"""What commands show: tables, sizes and times in words, and how far the work is."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from launch.processes import is_first

#: Called as work goes on: what is being done, how many modules are done, of how many.
Report = Callable[[str, int, int], None]

_WIDTH_OF_PIPES = 100
_WORDS = {"align": "aligning", "survey": "looking at all modules", "merge": "merging", "compare": "comparing"}


def console(quiet: bool = False) -> Console:
    """Return where to print: as wide as the terminal; elsewhere as ``COLUMNS`` says, or 100 columns."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDTH_OF_PIPES
    return Console(file=sys.stdout, quiet=quiet, width=width, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line at once, on the first of several processes."""
    if is_first():
        print(text, flush=True)


def show(screen: Console, what: RenderableType) -> None:
    """Print something without the blanks that fill its lines up."""
    with screen.capture() as captured:
        screen.print(what)
    if not screen.quiet and is_first():
        screen.file.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")
        screen.file.flush()


def table(*columns: str, left: int = 1) -> Table:
    """Return an empty table; the first ``left`` columns are of words, the others of numbers."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        words = index < left
        result.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return result


def facts(*rows: tuple[str, str]) -> Table:
    """Return what is to be said in two columns, without lines: a word, and what is so."""
    result = Table.grid(padding=(0, 2))
    result.add_column(no_wrap=True, style="bold")
    result.add_column(overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def size(count: float) -> str:
    """Return a number of bytes in words.

    >>> size(512), size(37_700_000), size(1.23e9)
    ('512 bytes', '38 MB', '1.2 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit, one in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 999.5 * one or unit == "TB":
            return f"{count / one:.{int(count < 9.95 * one)}f} {unit}"
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(0.04), duration(3.21), duration(75), duration(4000)
    ('under 0.1 s', '3.2 s', '75 s', '67 min')
    """
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def span(values: list[int]) -> str:
    """Return the smallest and the largest of some numbers, or the only one.

    >>> span([4, 4]), span([2, 16, 4])
    ('4', '2 to 16')
    """
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


@contextmanager
def progress(screen: Console) -> Iterator[Report]:
    """Yield what reports on the work: a bar in a terminal, elsewhere a plain line as each stage ends."""
    if screen.quiet:
        yield lambda stage, done, total: None
    elif not screen.is_terminal:
        yield _Lines(screen)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=screen, transient=True) as bar:
            yield _Bar(bar)


class _Stages:
    """Knows when a stage begins: there may be several passes of one name."""

    def __init__(self) -> None:
        self._stage, self._done, self._passes = "", 0, 0
        self._started = time.monotonic()

    def begins(self, stage: str, done: int) -> bool:
        """Return whether this is the first report of a stage."""
        again = stage == self._stage
        new = not again or done <= self._done
        if new:
            self._passes = self._passes + 1 if again else 1
        self._stage, self._done = stage, done
        return new

    @property
    def title(self) -> str:
        """The stage in words, with the number of the pass from the second on."""
        words = _WORDS.get(self._stage, self._stage)
        return words if self._passes == 1 else f"{words}, pass {self._passes}"


class _Lines(_Stages):
    """One line a stage, when it is done."""

    def __init__(self, screen: Console) -> None:
        super().__init__()
        self._screen = screen

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.begins(stage, done)
        if done == total:
            now = time.monotonic()
            took, self._started = now - self._started, now
            self._screen.print(f"{self.title}: {total} modules in {duration(took)}")
            self._screen.file.flush()


class _Bar(_Stages):
    """One bar a stage."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self._bar = bar
        self._task = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.begins(stage, done) or self._task is None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(self.title, total=total)
        self._bar.update(self._task, completed=done)
