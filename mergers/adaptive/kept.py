"""What a learned merge has come to: how many directions of each task it keeps, and with which coefficients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeptRanks:
    """Directions whose mask is on, of those that there are.

    Attributes:
        modules: names of the M modules whose directions have masks.
        tasks: names of the T tasks.
        kept: (M, T).
        directions: (M, T), how many there are.
    """

    modules: tuple[str, ...]
    tasks: tuple[str, ...]
    kept: tuple[tuple[int, ...], ...]
    directions: tuple[tuple[int, ...], ...]

    @property
    def share(self) -> float:
        """The share of all directions that is kept; 1 where nothing has masks."""
        return _share(sum(map(sum, self.kept)), sum(map(sum, self.directions)))

    @property
    def shares(self) -> dict[str, float]:
        """The share of its directions that each task keeps, all modules together.

        >>> KeptRanks(("q", "v"), ("hue", "shade"), ((1, 4), (2, 3)), ((4, 4), (4, 4))).shares
        {'hue': 0.375, 'shade': 0.875}
        """
        columns = zip(zip(*self.kept, strict=True), zip(*self.directions, strict=True), strict=True)
        return {task: _share(sum(kept), sum(there)) for task, (kept, there) in zip(self.tasks, columns, strict=False)}

    @property
    def each(self) -> int | None:
        """How many directions a task has in a module, if that is the same everywhere."""
        counts = {count for of_module in self.directions for count in of_module}
        return counts.pop() if len(counts) == 1 else None

    def rows(self) -> list[tuple[str, str, int, int]]:
        """Return (module, task, kept, directions) of each module and task."""
        kept, directions = _flat(self.modules, self.tasks, self.kept), _flat(self.modules, self.tasks, self.directions)
        return [(*row, there) for row, (_, _, there) in zip(kept, directions, strict=True)]


@dataclass(frozen=True)
class LearnedCoefficients:
    """The coefficients of the modules that have some.

    Attributes:
        modules: names of the M modules.
        tasks: names of the T tasks.
        values: (M, T).
        first: (M, T), what they began with.
    """

    modules: tuple[str, ...]
    tasks: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    first: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each task's coefficients over modules."""
        columns = zip(*self.values, strict=True)
        return {task: sum(column) / len(column) for task, column in zip(self.tasks, columns, strict=True)}

    @property
    def beginnings(self) -> list[float]:
        """Every value that some coefficient began with, ascending."""
        return sorted({value for of_module in self.first for value in of_module})

    def rows(self) -> list[tuple[str, str, float]]:
        """Return (module, task, coefficient) of each module and task."""
        return _flat(self.modules, self.tasks, self.values)


def _share(kept: int, there: int) -> float:
    return kept / there if there else 1.0


def _flat(modules: Sequence[str], tasks: Sequence[str], values: Sequence[Sequence[Any]]) -> list[tuple[str, str, Any]]:
    """Return (module, task, value) of a matrix, row by row."""
    return [
        (module, task, value)
        for module, of_module in zip(modules, values, strict=True)
        for task, value in zip(tasks, of_module, strict=True)
    ]
