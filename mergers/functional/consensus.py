"""TIES' agreement on a sign, and the merge of the entries that have it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Vote = Literal["values", "counts"]
Aggregate = Literal["mean", "sum", "max"]


def elect_signs(values: Sequence[Tensor] | Tensor, vote: Vote = "values") -> Tensor:
    """Return the sign of each entry's sum over tasks.

    Args:
        values: T tensors of one shape.
        vote: "values" sums the entries, "counts" their signs.

    Returns:
        (...) of -1, 0 and 1; 0 where the sum is exactly zero.

    >>> elect_signs(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [-1.0, -2.0]]))
    tensor([1., 0.])
    >>> elect_signs(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [-1.0, -2.0]]), vote="counts")
    tensor([-1.,  1.])
    """
    total = torch.zeros_like(values[0])
    for value in values:
        total += value if vote == "values" else value.sign()
    return total.sign_()


def resolve_zero_signs(signs: Tensor, majority: float) -> Tensor:
    """Return ``signs`` with the sign of ``majority`` in place of zeros.

    >>> resolve_zero_signs(torch.tensor([1.0, 0.0, -1.0]), majority=-7.0)
    tensor([ 1., -1., -1.])
    """
    sign = (majority > 0) - (majority < 0)
    return signs + sign * (1 - signs.abs()) if sign else signs


def disjoint_merge(
    values: Sequence[Tensor] | Tensor, signs: Tensor, weights: Sequence[float], aggregate: Aggregate = "mean"
) -> Tensor:
    """Merge, entry by entry, the tasks whose value has the elected sign.

    Args:
        values: T tensors (...), trimmed; a zero takes no part.
        signs: (...), elected.
        weights: One a task; multiply the values after the selection.
        aggregate: "mean" over the tasks that take part, "sum", or "max": the weighted value largest in
            magnitude.

    Returns:
        (...), zero where no task takes part.
    """
    merged = torch.zeros_like(signs)
    count = torch.zeros_like(signs)
    for value, weight in zip(values, weights, strict=True):
        agreeing = (value * signs).relu_()  # its magnitude where the sign is the elected one, else 0
        if aggregate == "max":
            candidate = agreeing * weight
            merged = torch.where(candidate.abs() > merged.abs(), candidate, merged)
        else:
            merged.add_(agreeing, alpha=weight)
        if aggregate == "mean":
            count += agreeing.sign_()
    merged *= signs
    return merged.div_(count.clamp_(min=1)) if aggregate == "mean" else merged
