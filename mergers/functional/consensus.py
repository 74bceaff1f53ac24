"""TIES' agreement on a sign, and the merge of the entries that have it."""

from typing import Literal

import torch
from torch import Tensor

Vote = Literal["values", "counts"]
Aggregate = Literal["mean", "sum", "max"]


def elect_signs(values: Tensor, vote: Vote = "values") -> Tensor:
    """Return the sign of each entry's sum over tasks.

    Args:
        values: (T, ...).
        vote: "values" sums the entries, "counts" their signs.

    Returns:
        (...) of -1, 0 and 1; 0 where the sum is exactly zero.

    >>> elect_signs(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [-1.0, -2.0]]))
    tensor([1., 0.])
    >>> elect_signs(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [-1.0, -2.0]]), vote="counts")
    tensor([-1.,  1.])
    """
    return (values if vote == "values" else values.sign()).sum(dim=0).sign()


def resolve_zero_signs(signs: Tensor, majority: Tensor | float) -> Tensor:
    """Return ``signs`` with the sign of ``majority`` in place of zeros."""
    majority = torch.as_tensor(majority, dtype=signs.dtype, device=signs.device).sign()
    return torch.where(signs == 0, majority, signs)


def disjoint_merge(values: Tensor, signs: Tensor, weights: Tensor, aggregate: Aggregate = "mean") -> Tensor:
    """Merge, entry by entry, the tasks whose value has the elected sign.

    Args:
        values: (T, ...), trimmed; a zero takes no part.
        signs: (...), elected.
        weights: (T,), multiply the values after the selection.
        aggregate: "mean" over the tasks that take part, "sum", or "max": the weighted value largest in
            magnitude.

    Returns:
        (...), zero where no task takes part.
    """
    chosen = values.sign() == signs
    weighted = torch.where(chosen, values, 0.0) * weights.view(-1, *[1] * signs.ndim)
    if aggregate == "max":
        return weighted.gather(0, weighted.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    total = weighted.sum(dim=0)
    return total if aggregate == "sum" else total / chosen.sum(dim=0).clamp(min=1)
