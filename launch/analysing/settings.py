"""What is analysed, and how closely."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_modules.checks import check_number
from mergers import SheetbendError
from mergers.errors import did_you_mean

# Every kind of analysis, and what it shows.
KINDS = {
    "tasks": "accuracy against the number of merged tasks",
    "sides": "KnOTS over inputs (updates side by side) against over outputs (above each other)",
    "rank": "accuracy against the rank of the adapters",
    "cka": "how alike the outputs of the tasks' updates are",
    "interference": "signs, directions and norms of the tasks' updates, layer by layer",
}


@dataclass(frozen=True)
class Analysis:
    """What is looked at, and how closely.

    Attributes:
        kinds: What to look at, in this order: ``tasks``, ``sides``, ``rank``, ``cka``, ``interference``. On the command
            line ``sheetbend analyse tasks cka`` is short for ``--analysis.kinds '[tasks, cka]'``.
        split: Of tasks, sides and cka: whose examples, ``test`` or ``val``.
        samples: Of tasks: at most so many subsets of each size, drawn by the seed of the run; none: all.
        ranks: Of rank: the ranks to fit adapters of, each with alpha = rank, in ``analyses/rank/rank-<r>``.
        runs: Of rank: run folders that are there already, by rank; they are read in place of a fit, or beside those
            of ``ranks``.
        examples: Of cka: how many examples of each task go through the model.
        whole: Of cka: fully fine-tuned models of the same tasks, to be compared with: a folder with one model a task in
            it, a name with ``{task}`` in it, or a map from task name to folder or file.
    """

    kinds: list[str] = field(default_factory=list)
    split: Literal["test", "val"] = "test"
    samples: int | None = 20
    ranks: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])
    runs: dict[int, str] = field(default_factory=dict)
    examples: int = 128
    whole: str | dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, such in (("kinds", "[tasks]"), ("ranks", "[4, 16]"), ("runs", "{16: runs/quickstart}")):
            if getattr(self, name) is None:
                raise SheetbendError(f"analysis.{name} is null; leave it out, or give some, such as {such}")
        if self.whole is not None and not self.whole:
            raise SheetbendError(
                "analysis.whole is empty; give fully fine-tuned models, such as 'models/{task}', or none"
            )
        check_kinds(self.kinds)
        if self.samples is not None:
            _check_whole("analysis.samples", self.samples)
        _check_whole("analysis.examples", self.examples)
        for rank in [*self.ranks, *self.runs]:
            _check_whole("analysis.ranks" if rank in self.ranks else "analysis.runs", rank)
        twice = [rank for rank in self.ranks if self.ranks.count(rank) > 1]
        if twice:
            raise SheetbendError(f"analysis.ranks names {twice[0]} twice; name it once")
        if "rank" in self.kinds and not {*self.ranks, *self.runs}:
            raise SheetbendError("analysis.ranks and analysis.runs are empty; give ranks, such as [4, 16]")

    def require_kinds(self) -> None:
        """Raise `SheetbendError` if nothing is to be looked at."""
        if not self.kinds:
            raise SheetbendError(f"analyse what? give one or more of {', '.join(KINDS)}: sheetbend analyse tasks ...")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `SheetbendError` for a kind that does not exist, or stands twice."""
    for kind in kinds:
        if kind not in KINDS:
            close = did_you_mean(kind, list(KINDS))
            raise SheetbendError(f"analysis.kinds names {kind!r}{close}; known: {', '.join(KINDS)}")
        if list(kinds).count(kind) > 1:
            raise SheetbendError(f"analysis.kinds names {kind} twice; name it once")


def _check_whole(name: str, value: int) -> None:
    check_number(name, value, least=1)
    if value != int(value):
        raise SheetbendError(f"{name} is {value}; give a whole number")
