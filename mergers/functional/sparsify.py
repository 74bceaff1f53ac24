"""Which entries are kept: magnitude thresholds and random masks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

# A float32 without its sign bit orders like an integer: its 15 high bits (exponent
# and 7 of the mantissa), then its 16 low ones.
_LOW_BITS = 16
_HIGH_BINS, _LOW_BINS = 1 << 15, 1 << 16
_HISTOGRAM_ENTRIES = 1 << 19

#: Calls a function on every module's blocks (an iterable of float32 tensors a task) and returns the results, lazily.
EachModule = Callable[[Callable[[Sequence[Iterable[Tensor]]], Tensor]], Iterable[Tensor]]


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
    return magnitude_thresholds(lambda function: [function([[values]])], density)[0]


def magnitude_thresholds(each_module: EachModule, density: float) -> Tensor:
    """Return one `magnitude_threshold` a task over the entries of all modules together, exactly.

    Two passes over the modules count the high and then the low bits of the magnitudes, so that nothing
    larger than one block is held.

    Args:
        each_module: Calls a function on each module's blocks of values, an iterable a task.
        density: In (0, 1].

    Returns:
        (T,) float32.
    """
    high = sum(each_module(_high_counts))  # (T, bins)
    counts = high.sum(dim=1).tolist()
    ranks = torch.tensor([threshold_rank(count, density) for count in counts], device=high.device)
    high_bin, rank_within = _bin_of_rank(high, ranks)
    low = sum(each_module(lambda tasks: _low_counts(tasks, high_bin.tolist())))
    low_bin, _ = _bin_of_rank(low, rank_within)
    bits = (high_bin << _LOW_BITS) + low_bin
    bits = bits * (torch.tensor(counts, device=bits.device) > 0)
    return bits.to(torch.int32).view(torch.float32)


def _joined(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the entries in larger pieces, each worth a histogram."""
    waiting: list[Tensor] = []
    for block in blocks:
        waiting.append(block.flatten())
        if sum(map(len, waiting)) >= _HISTOGRAM_ENTRIES:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _magnitude_bits(values: Tensor) -> Tensor:
    """Return the entries' magnitudes as integers of the same order, (n,) int32."""
    return values.detach().float().contiguous().flatten().abs().view(torch.int32)


def _high_counts(tasks: Sequence[Iterable[Tensor]]) -> Tensor:
    """Return the histogram of the high bits, (T, 2**15)."""
    return torch.stack(
        [
            sum(torch.bincount(_magnitude_bits(block) >> _LOW_BITS, minlength=_HIGH_BINS) for block in _joined(blocks))
            for blocks in tasks
        ]
    )


def _low_counts(tasks: Sequence[Iterable[Tensor]], high_bins: Sequence[int]) -> Tensor:
    """Return the histogram of the low bits among the entries in each task's high bin, (T, 2**16)."""
    rows = []
    for blocks, high_bin in zip(tasks, high_bins, strict=True):
        row = 0
        for block in _joined(blocks):
            # Entries of other high bins fall below or above the row; to count them is faster than to select.
            place = (_magnitude_bits(block) - (high_bin << _LOW_BITS)).clamp_(-1, _LOW_BINS)
            row = row + torch.bincount(place.add_(1), minlength=_LOW_BINS + 2)[1:-1]
        rows.append(row)
    return torch.stack(rows)


def _bin_of_rank(histogram: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Return, row by row, the bin that holds the entry of that rank (from 1) and its rank within the bin."""
    cumulative = histogram.cumsum(dim=1)
    bins = torch.searchsorted(cumulative, ranks[:, None]).clamp(max=histogram.shape[1] - 1)
    before = cumulative.gather(1, bins) - histogram.gather(1, bins)
    return bins.squeeze(1), ranks - before.squeeze(1)


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


def drop_and_rescale(values: Tensor, drop_rate: float, generator: torch.Generator) -> Tensor:
    """Set entries to zero with probability ``drop_rate`` and multiply the others by 1 / (1 - drop_rate).

    Paper: Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099), DARE.

    Args:
        values: Any shape.
        drop_rate: In [0, 1).
        generator: On the CPU, so that the mask does not depend on the device.
    """
    kept = torch.rand(values.shape, generator=generator).ge_(drop_rate)  # in place: 0.0 and 1.0, no slow booleans
    return kept.div_(1 - drop_rate).to(values.device) * values
