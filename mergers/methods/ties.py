"""Trim, elect a sign, merge what agrees."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.consensus import (
    Aggregate,
    Vote,
    disjoint_merge,
    elect_signs,
    resolve_zero_signs,
)
from mergers.functional.selection import EachEntries
from mergers.functional.sparsify import keep_large, magnitude_threshold, magnitude_thresholds
from mergers.methods.base import EachModule, EntrywiseMethod, Result, blocks_of, task_blocks
from mergers.updates import Update

Trim = Literal["global", "local"]

_FEW = 1 << 16  # entries of a module that are sooner partly sorted than counted; no more than one block
_STEP = 4  # every fourth entry of every fourth row is looked at to guess a threshold


class TrimmedVote:
    """What trimming knows of the modules that share a threshold.

    Args:
        thresholds: Smallest magnitude kept, one a task; empty where all are.
        count_signs: Returns the total of the elected signs, in one more pass over the modules.

    Attributes:
        thresholds: As given.
    """

    def __init__(self, thresholds: list[float], count_signs: Callable[[], float]) -> None:
        self.thresholds = thresholds
        self._count_signs = count_signs
        self._total: float | None = None
        self._lock = threading.Lock()

    def total(self) -> float:
        """Return the total of the elected signs, counted when it is first asked for: ties are rare."""
        with self._lock:
            if self._total is None:
                self._total = self._count_signs()
        return self._total


@dataclass(frozen=True)
class Ties(EntrywiseMethod):
    """TIES: trims small entries, elects a sign an entry, and merges the tasks that have it.

    Of d entries, those not smaller in magnitude than the (d - floor(d * density))-th smallest are kept.
    Where the vote is exactly zero, the sign of the total of the elected signs decides: over all
    modules for global trimming, over the module for local. Coefficients multiply after the election.

    Paper: Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv 2306.01708).

    Attributes:
        density: Fraction of the entries that is kept, in (0, 1].
        trim: One threshold a task over all modules ("global"), or one a task and module ("local").
        aggregate: "mean" over the tasks that agree, "sum" of them, or "max": the largest in magnitude.
        sign: The vote: sum of the trimmed "values", or of their signs ("counts").
    """

    density: float = 0.2
    trim: Trim = "global"
    aggregate: Aggregate = "mean"
    sign: Vote = "values"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise SheetbendError(f"Ties density is {self.density}; give the fraction of entries to keep, in (0, 1]")
        for field, choices in (("trim", Trim), ("aggregate", Aggregate), ("sign", Vote)):
            known = get_args(choices)
            if getattr(self, field) not in known:
                raise SheetbendError(f"Ties {field} is {getattr(self, field)!r}; known: {', '.join(known)}")

    def survey(self, each_module: EachModule) -> TrimmedVote | None:
        """Return the thresholds over all modules; None for local trimming."""
        if self.trim == "local":
            return None

        def each_sample(function: Callable[[list[Iterable[Tensor]]], Result]) -> Iterable[Result]:
            return each_module(lambda coordinates: function([[update.sample(_STEP)] for update in coordinates]))

        return self._vote(each_module, self._thresholds(each_module, each_sample))

    def survey_module(self, coordinates: Sequence[Update], survey: TrimmedVote | None) -> TrimmedVote:
        """Return the survey of all modules, or that of this one for local trimming."""
        if survey is not None:
            return survey

        def this_module(function: Callable[[Sequence[Update]], Result]) -> Iterable[Result]:
            return [function(coordinates)]

        if math.prod(coordinates[0].shape) > _FEW:
            return self._vote(this_module, self._thresholds(this_module))
        return self._vote(this_module, [magnitude_threshold(update.dense(), self.density) for update in coordinates])

    def merge_entries(self, values: Sequence[Tensor], coefficients: Sequence[float], survey: TrimmedVote) -> Tensor:
        """Return the merged entries of a block."""
        trimmed = _trimmed(values, survey.thresholds)
        signs = elect_signs(trimmed, self.sign)
        undecided = 1 - signs.abs()
        if any((value * undecided).abs_().sum() > 0 for value in trimmed):  # a tie, not just a place without votes
            signs = resolve_zero_signs(signs, survey.total())
        return disjoint_merge(trimmed, signs, coefficients, self.aggregate)

    def _thresholds(self, each_module: EachModule, each_sample: EachEntries | None = None) -> list[float]:
        """Return the smallest magnitude kept of each task over some modules; nothing at density 1, which keeps all."""
        if self.density == 1:
            return []

        def each_blocks(function: Callable[[list[Iterable[Tensor]]], Result]) -> Iterable[Result]:
            return each_module(lambda coordinates: function([blocks_of(update) for update in coordinates]))

        return magnitude_thresholds(each_blocks, self.density, each_sample)

    def _vote(self, each_module: EachModule, thresholds: list[float]) -> TrimmedVote:
        """Return the thresholds, and how to count the elected signs over some modules."""

        def total_sign(coordinates: Sequence[Update]) -> float:
            return sum(
                float(elect_signs(_trimmed(values, thresholds), self.sign).sum(dtype=torch.float64))
                for values in task_blocks(coordinates)
            )

        vote = TrimmedVote(thresholds, lambda: sum(each_module(total_sign)))
        if self.sign == "counts":  # ties are the rule there: count while all threads are at it
            vote.total()
        return vote


def _trimmed(values: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Return each task's large entries; all of them where there are no thresholds."""
    if not thresholds:
        return list(values)
    return [keep_large(value, limit) for value, limit in zip(values, thresholds, strict=True)]
