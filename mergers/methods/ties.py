"""Trim, elect a sign, merge what agrees."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

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
from mergers.functional.sparsify import global_magnitude_thresholds, keep_large, magnitude_threshold
from mergers.methods.base import EachModule, Method, Result
from mergers.updates import DenseUpdate, Update

Trim = Literal["global", "local"]


@dataclass(frozen=True)
class GlobalTrim:
    """What global trimming knows of all modules together.

    Attributes:
        thresholds: (T,) smallest magnitude kept.
        total: Sum of the elected signs; its sign is taken where a sum is exactly zero.
    """

    thresholds: Tensor
    total: float


@dataclass(frozen=True)
class Ties(Method):
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

    entrywise: ClassVar[bool] = True

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

    def survey(self, each_module: EachModule) -> GlobalTrim | None:
        """Return thresholds and the total of elected signs over all modules; None for local trimming."""
        if self.trim == "local":
            return None

        def each_dense(function: Callable[[list[Tensor]], Result]) -> Iterable[Result]:
            return each_module(lambda coordinates: function([update.dense() for update in coordinates]))

        thresholds = global_magnitude_thresholds(each_dense, self.density)
        totals = each_dense(lambda values: _total_sign(elect_signs(_trimmed(values, thresholds), self.sign)))
        return GlobalTrim(thresholds, sum(totals))

    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: GlobalTrim | None) -> Update:
        """Return the merged entries."""
        values = [update.dense() for update in coordinates]
        if survey is None:
            thresholds = torch.stack([magnitude_threshold(value, self.density) for value in values])
        else:
            thresholds = survey.thresholds
        trimmed = _trimmed(values, thresholds)
        signs = elect_signs(trimmed, self.sign)
        signs = resolve_zero_signs(signs, _total_sign(signs) if survey is None else survey.total)
        weights = torch.tensor(coefficients, dtype=trimmed.dtype, device=trimmed.device)
        return DenseUpdate(disjoint_merge(trimmed, signs, weights, self.aggregate))


def _total_sign(signs: Tensor) -> float:
    """Return the sum of elected signs, exact for any number of entries."""
    return float(signs.sum(dtype=torch.float64))


def _trimmed(values: Sequence[Tensor], thresholds: Tensor) -> Tensor:
    """Return each task's large entries, (T, ...)."""
    return torch.stack([keep_large(value, limit) for value, limit in zip(values, thresholds, strict=True)])
