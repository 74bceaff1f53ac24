"""Which entries are kept: magnitude thresholds and random masks."""

import math

import torch
from torch import Tensor

from mergers.functional.selection import EachEntries, select_magnitudes


def threshold_rank(count: int, density: float) -> int:
    """Return the k for which the entries not smaller than the k-th smallest magnitude are kept.

    k = count - floor(count * density), and 1 where that is 0. Of distinct magnitudes this keeps
    floor(count * density) + 1 entries, all of them at density 1. Rule of Yadav et al., TIES-Merging (arXiv
    2306.01708), as the KnOTS code counts.

    >>> threshold_rank(10, 0.2), threshold_rank(10, 1.0)
    (8, 1)
    """
    return max(count - math.floor(count * density), 1)


def magnitude_threshold(values: Tensor, density: float) -> float:
    """Return the smallest magnitude kept among all entries of ``values``, 0 where there are none."""
    if values.numel() == 0:
        return 0.0
    rank = threshold_rank(values.numel(), density)
    return float(values.detach().float().abs().flatten().kthvalue(rank).values)


def magnitude_thresholds(
    each_module: EachEntries, density: float, each_sample: EachEntries | None = None
) -> list[float]:
    """Return one `magnitude_threshold` a task over the entries of all modules together, exactly.

    Args:
        each_module: As for `select_magnitudes`.
        density: In (0, 1].
        each_sample: As for `select_magnitudes`.
    """
    selected = select_magnitudes(
        each_module, lambda counts: [threshold_rank(count, density) for count in counts], each_sample
    )
    return [found.magnitude for found in selected]


def keep_large(values: Tensor, threshold: float) -> Tensor:
    """Return ``values`` with zeros where the magnitude is below ``threshold``.

    >>> keep_large(torch.tensor([1.0, -3.0, 2.0]), 2.0)
    tensor([ 0., -3.,  2.])
    """
    if threshold <= 0:
        return values
    # hardshrink zeroes what is not above its limit: the float just below the threshold.
    limit = torch.nextafter(torch.tensor(threshold, dtype=torch.float32), torch.tensor(0.0))
    return torch.nn.functional.hardshrink(values, float(limit))


def drop_and_rescale(values: Tensor, drop_rate: float | Tensor, generator: torch.Generator) -> Tensor:
    """Set entries to zero with probability ``drop_rate`` and multiply the others by 1 / (1 - drop_rate).

    Paper: Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099), DARE.

    Args:
        values: Any shape.
        drop_rate: In [0, 1), one for all, or a tensor of one an entry on the CPU.
        generator: On the CPU, so that the mask does not depend on the device.
    """
    kept = torch.rand(values.shape, generator=generator).ge_(drop_rate)  # in place: 0.0 and 1.0, no slow booleans
    return kept.div_(1 - drop_rate).to(values.device) * values
