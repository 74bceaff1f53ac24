"""Which entries are kept: magnitude thresholds and random masks."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# A float32 without its sign bit orders like an integer: its 15 high bits (exponent
# and 7 of the mantissa), then its 16 low ones.
_LOW_BITS = 16
_HIGH_BINS, _LOW_BINS = 1 << 15, 1 << 16

#: Calls a function on the tensors of every module (one a task) and returns the results, lazily.
EachModule = Callable[[Callable[[Sequence[Tensor]], Tensor]], Iterable[Tensor]]


def threshold_rank(count: int, density: float) -> int:
    """Return the k for which the entries not smaller than the k-th smallest magnitude are kept.

    k = count - floor(count * density), and 1 where that is 0. Of distinct magnitudes this keeps
    floor(count * density) + 1 entries, all of them at density 1. Rule of Yadav et al., TIES-Merging (arXiv
    2306.01708), as the KnOTS code counts.

    >>> threshold_rank(10, 0.2), threshold_rank(10, 1.0)
    (8, 1)
    """
    return max(count - math.floor(count * density), 1)


def magnitude_threshold(values: Tensor, density: float) -> Tensor:
    """Return the smallest magnitude kept among all entries of ``values``: float32, 0 where there are none."""
    # Not kthvalue, which is not deterministic on CUDA.
    return global_magnitude_thresholds(lambda function: [function([values])], density)[0]


def global_magnitude_thresholds(each_module: EachModule, density: float) -> Tensor:
    """Return one `magnitude_threshold` a task over the entries of all modules together, exactly.

    Two passes over the modules count the high and then the low bits of the magnitudes, so that nothing
    larger than one module is held.

    Args:
        each_module: Calls a function on each module's values: float32 tensors, one a task.
        density: In (0, 1].

    Returns:
        (T,) float32.
    """
    high = sum(each_module(_high_counts))  # (T, bins)
    counts = high.sum(dim=1).tolist()
    ranks = torch.tensor([threshold_rank(count, density) for count in counts], device=high.device)
    high_bin, rank_within = _bin_of_rank(high, ranks)
    low = sum(each_module(lambda values: _low_counts(values, high_bin)))
    low_bin, _ = _bin_of_rank(low, rank_within)
    bits = (high_bin << _LOW_BITS) + low_bin
    bits = bits * (torch.tensor(counts, device=bits.device) > 0)
    return bits.to(torch.int32).view(torch.float32)


def _magnitude_bits(values: Tensor) -> Tensor:
    """Return the entries' magnitudes as integers of the same order, (n,) int32."""
    return values.detach().float().contiguous().flatten().abs().view(torch.int32)


def _high_counts(values: Sequence[Tensor]) -> Tensor:
    """Return the histogram of the high bits, (T, 2**15)."""
    rows = [torch.bincount(_magnitude_bits(v) >> _LOW_BITS, minlength=_HIGH_BINS) for v in values]
    return torch.stack(rows)


def _low_counts(values: Sequence[Tensor], high_bin: Tensor) -> Tensor:
    """Return the histogram of the low bits among the entries in each task's high bin, (T, 2**16)."""
    rows = []
    for tensor, wanted in zip(values, high_bin.tolist(), strict=True):
        bits = _magnitude_bits(tensor)
        inside = bits[(bits >> _LOW_BITS) == wanted]
        rows.append(torch.bincount(inside & (_LOW_BINS - 1), minlength=_LOW_BINS))
    return torch.stack(rows)


def _bin_of_rank(histogram: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Return, row by row, the bin that holds the entry of that rank (from 1) and its rank within the bin."""
    cumulative = histogram.cumsum(dim=1)
    bins = torch.searchsorted(cumulative, ranks[:, None]).clamp(max=histogram.shape[1] - 1)
    before = cumulative.gather(1, bins) - histogram.gather(1, bins)
    return bins.squeeze(1), ranks - before.squeeze(1)


def keep_large(values: Tensor, threshold: Tensor) -> Tensor:
    """Return ``values`` with zeros where the magnitude is below ``threshold``.

    >>> keep_large(torch.tensor([1.0, -3.0, 2.0]), torch.tensor(2.0))
    tensor([ 0., -3.,  2.])
    """
    return torch.where(values.abs() >= threshold, values, 0.0)


def drop_and_rescale(values: Tensor, drop_rate: float, generator: torch.Generator) -> Tensor:
    """Set entries to zero with probability ``drop_rate`` and multiply the others by 1 / (1 - drop_rate).

    Paper: Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099), DARE.

    Args:
        values: Any shape.
        drop_rate: In [0, 1).
        generator: On the CPU, so that the mask does not depend on the device.
    """
    kept = torch.rand(values.shape, generator=generator) >= drop_rate
    return torch.where(kept.to(values.device), values / (1 - drop_rate), 0.0)
