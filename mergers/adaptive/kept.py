"""How many directions of each task a learned merge keeps."""

from dataclasses import dataclass


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
        there = sum(map(sum, self.directions))
        return sum(map(sum, self.kept)) / there if there else 1.0

    def rows(self) -> list[tuple[str, str, int, int]]:
        """Return (module, task, kept, directions) of each module and task."""
        return [
            (module, task, kept, there)
            for module, of_kept, of_there in zip(self.modules, self.kept, self.directions, strict=True)
            for task, kept, there in zip(self.tasks, of_kept, of_there, strict=True)
        ]
