"""Validation scores over training: rows in memory, in history.csv and in the checkpoint."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from callbacks.results import csv_text
from lightning_modules.scores import Score, headline_scores
from mergers.errors import SheetbendError


@dataclass(frozen=True)
class Point:
    """The validation score of one variant on one task at one step.

    Attributes:
        step: optimiser steps taken so far.
        epoch: epochs begun before this validation, counted from 0.
        variant: the weights under test.
        task: the task.
        metric: the metric that stands for the task, ``accuracy`` for most.
        value: a fraction in [0, 1]; correlations in [-1, 1].
    """

    step: int
    epoch: int
    variant: str
    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class Curves:
    """Every validation of a run, in order.

    Attributes:
        points: one a (step, variant, task), steps ascending.
    """

    points: tuple[Point, ...] = ()

    def record(self, step: int, epoch: int, scores: Iterable[Score]) -> "Curves":
        """Return the curves with this validation's scores at their end.

        Points of this step and of later ones, which a run that went back has left behind, are dropped.
        """
        kept = tuple(point for point in self.points if point.step < step)
        new = (Point(step, epoch, s.variant, s.task, s.metric, s.value) for s in headline_scores(scores))
        return Curves((*kept, *new))

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant, in order."""
        return tuple(dict.fromkeys(point.variant for point in self.points))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task, in order."""
        return tuple(dict.fromkeys(point.task for point in self.points))

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step at which was validated."""
        return tuple(dict.fromkeys(point.step for point in self.points))

    @property
    def measure(self) -> str:
        """What the values are in one word: ``accuracy``, or ``score`` where some tasks have another metric."""
        return "accuracy" if all(point.metric == "accuracy" for point in self.points) else "score"

    def line(self, variant: str, task: str) -> dict[int, float]:
        """Return the task's metric by step; for the task ``mean``, the mean where every task was measured."""
        if task == "mean":
            lines = [self.line(variant, name) for name in self.tasks]
            common = [step for step in self.steps if all(step in line for line in lines)]
            return {step: math.fsum(line[step] for line in lines) / len(lines) for step in common}
        return {p.step: p.value for p in self.points if p.variant == variant and p.task == task}

    def scores(self, step: int) -> tuple[Score, ...]:
        """Return one validation as scores; how many examples it took is not kept (count 0)."""
        return tuple(Score(p.variant, p.task, p.metric, p.value, 0) for p in self.points if p.step == step)

    def state(self) -> list[list]:
        """Return plain lists, for a checkpoint."""
        return [list(astuple(point)) for point in self.points]

    @classmethod
    def from_state(cls, state: list[list]) -> "Curves":
        """Read what ``state`` returned."""
        return cls(tuple(Point(*row) for row in state))

    def to_csv(self) -> str:
        """Return CSV text with the columns step, epoch, variant, task, metric, value."""
        return csv_text([column.name for column in fields(Point)], map(astuple, self.points))

    @classmethod
    def from_csv(cls, text: str, name: str = "history.csv") -> "Curves":
        """Read what ``to_csv`` wrote.

        Raises:
            SheetbendError: a column is missing or a number is none.
        """
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
            return cls(
                tuple(
                    Point(int(r["step"]), int(r["epoch"]), r["variant"], r["task"], r["metric"], float(r["value"]))
                    for r in rows
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SheetbendError(f"{name} holds no curves ({error}); remove it, or fit again") from error
