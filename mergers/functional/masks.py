"""Which entries are kept, by their rank or by what other tasks hold there. Masks are 0.0 and 1.0: booleans are slow."""

from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """A position in the ascending order of magnitudes, in which equal ones stand in the order of their position.

    Attributes:
        magnitude: That of the last entry before the cut.
        place: How many entries of just this magnitude stand before the cut.
    """

    magnitude: float
    place: int


def up_to(magnitudes: Tensor, cut: Cut, seen: int = 0) -> tuple[Tensor, int]:
    """Return the mask of the entries that stand before a cut.

    Args:
        magnitudes: A block of the entries, any shape.
        cut: A position among all entries.
        seen: How many entries of the cut's magnitude the blocks before this one had.

    Returns:
        The mask, and ``seen`` for the next block.

    >>> up_to(torch.tensor([2.0, 1.0, 2.0, 3.0, 2.0]), Cut(2.0, place=2))
    (tensor([1., 1., 1., 0., 0.]), 3)
    """
    before = magnitudes.clone().lt_(cut.magnitude)
    equal = magnitudes.clone().eq_(cut.magnitude)
    count = int(equal.sum())
    if count:
        places = equal.flatten().cumsum(0, dtype=torch.int64).view_as(equal) + seen
        before += equal * (places <= cut.place)
    return before, seen + count


def relative_ranks(values: Tensor) -> Tensor:
    """Return each entry's rank by magnitude within its row, from 0 for the smallest to 1 for the largest.

    Of equal magnitudes the first counts as the smallest. The only entry of a row stands in the middle.

    Args:
        values: (..., n).

    >>> relative_ranks(torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    tensor([[1.0000, 0.0000, 0.5000],
            [0.0000, 0.5000, 1.0000]])
    """
    columns = values.shape[-1]
    if columns == 1:
        return torch.full_like(values, 0.5)
    order = values.abs().argsort(dim=-1, stable=True)
    steps = torch.linspace(0, 1, columns, device=values.device).expand(values.shape)
    return torch.empty_like(values).scatter_(-1, order, steps)


def tall_mask(value: Tensor, total: Tensor, threshold: float) -> Tensor:
    """Return the mask of the entries that a task wants: |value| > threshold * |total - value|.

    Paper: Wang et al., Localizing Task Information, ICML 2024 (arXiv 2405.07813), TALL-masks.

    Args:
        value: A task's entries.
        total: The weighted sum over all tasks, of the same shape.
        threshold: lambda.

    >>> tall_mask(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 4.0]), threshold=0.5)
    tensor([1., 0.])
    """
    return value.abs().gt_((total - value).abs_().mul_(threshold))
