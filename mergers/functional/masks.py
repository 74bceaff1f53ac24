"""Which entries are kept, by their rank or by what other tasks hold there. Masks are 0.0 and 1.0: booleans are slow."""

import torch
from torch import Tensor

from mergers.functional.selection import Selected


def up_to(values: Tensor, last: Selected, seen: int = 0) -> tuple[Tensor, int]:
    """Return ``values`` with zeros after a place in the ascending order of magnitudes.

    Of equal magnitudes, those that come first in ``values`` come first in the order.

    Args:
        values: A block of the entries, any shape.
        last: The last entry to keep among all blocks.
        seen: How many entries of its magnitude the blocks before this one had.

    Returns:
        The values kept, and ``seen`` for the next block.

    >>> up_to(torch.tensor([2.0, 1.0, -2.0, 3.0, 2.0]), Selected(2.0, place=2, equal=3))
    (tensor([ 2.,  1., -2.,  0.,  0.]), 3)
    """
    if last.place == last.equal:  # what is kept ends with a magnitude: no need to look for equal ones
        return values - torch.nn.functional.hardshrink(values, last.magnitude), seen
    magnitudes = values.abs()
    equal = magnitudes == last.magnitude
    places = equal.flatten().cumsum(0).view_as(equal) + seen
    kept = (magnitudes < last.magnitude) | (equal & (places <= last.place))
    return values * kept, seen + int(equal.sum())


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
