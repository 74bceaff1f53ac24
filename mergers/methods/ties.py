"""Trim, elect a sign, merge what agrees."""

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
from mergers.functional.sparsify import keep_large, magnitude_thresholds
from mergers.methods.base import EachModule, EntrywiseMethod, Result, blocks_of, task_blocks
from mergers.updates import Update

Trim = Literal["global", "local"]

_STEP = 4  # every fourth entry of every fourth row is looked at to guess a threshold


@dataclass(frozen=True)
class TrimmedVote:
    """What trimming knows of the modules that share a threshold.

    Attributes:
        thresholds: Smallest magnitude kept, one a task; empty where all are.
        total: Sum of the elected signs; its sign is taken where a sum is exactly zero.
    """

    thresholds: list[float]
    total: float


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
        """Return thresholds and the total of elected signs over all modules; None for local trimming."""
        return self._vote(each_module, sampled=True) if self.trim == "global" else None

    def survey_module(self, coordinates: Sequence[Update], survey: TrimmedVote | None) -> TrimmedVote:
        """Return the survey of all modules, or that of this one for local trimming."""
        return self._vote(lambda function: [function(coordinates)], sampled=False) if survey is None else survey

    def merge_entries(self, values: Sequence[Tensor], coefficients: Sequence[float], survey: TrimmedVote) -> Tensor:
        """Return the merged entries of a block."""
        trimmed = _trimmed(values, survey.thresholds)
        signs = resolve_zero_signs(elect_signs(trimmed, self.sign), survey.total)
        return disjoint_merge(trimmed, signs, coefficients, self.aggregate)

    def _vote(self, each_module: EachModule, sampled: bool) -> TrimmedVote:
        """Return thresholds and the total of elected signs over some modules.

        Args:
            each_module: Goes through them.
            sampled: Look at a part of the entries first, which pays where there are many.
        """
        thresholds: list[float] = []  # density 1 keeps all
        if self.density < 1:

            def each_blocks(function: Callable[[list[Iterable[Tensor]]], Result]) -> Iterable[Result]:
                return each_module(lambda coordinates: function([blocks_of(update) for update in coordinates]))

            def each_sample(function: Callable[[list[Iterable[Tensor]]], Result]) -> Iterable[Result]:
                return each_module(lambda coordinates: function([[update.sample(_STEP)] for update in coordinates]))

            thresholds = magnitude_thresholds(each_blocks, self.density, each_sample if sampled else None)

        def total_sign(coordinates: Sequence[Update]) -> float:
            return sum(
                float(elect_signs(_trimmed(values, thresholds), self.sign).sum(dtype=torch.float64))
                for values in task_blocks(coordinates)
            )

        return TrimmedVote(thresholds, sum(each_module(total_sign)))


def _trimmed(values: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Return each task's large entries; all of them where there are no thresholds."""
    if not thresholds:
        return list(values)
    return [keep_large(value, limit) for value, limit in zip(values, thresholds, strict=True)]
