"""The k-th smallest magnitude among the entries of many modules, exactly, without holding or sorting them."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# A float32 without its sign bit orders like an integer: its 15 high bits (exponent
# and 7 of the mantissa), then its 16 low ones.
_LOW_BITS = 16
_HIGH_BINS = 1 << 15
_WIDEST_WINDOW = 4  # high bins; a wide histogram costs more than a second pass, and the guess behind it is poor
_HISTOGRAM_ENTRIES = 1 << 19

#: Calls a function on every module's blocks (an iterable of float32 tensors a task) and returns the results, lazily.
EachEntries = Callable[[Callable[[Sequence[Iterable[Tensor]]], Result]], Iterable[Result]]
#: Returns the ranks of the entries that are looked for, one a task, from 1 for the smallest magnitude, given how
#: many entries each task has.
RanksOf = Callable[[Sequence[int]], Sequence[int]]


class Selected(NamedTuple):
    """A magnitude that was looked for by its rank.

    Attributes:
        magnitude: 0 where there are no entries.
        place: Of the entry looked for among the entries that are equal to it, from 1.
        equal: How many these are.
    """

    magnitude: float
    place: int
    equal: int


class Window(NamedTuple):
    """Some neighbouring high bins."""

    first: int
    width: int


def select_magnitudes(
    each_module: EachEntries, ranks_of: RanksOf, each_sample: EachEntries | None = None
) -> list[Selected]:
    """Return one magnitude a task, chosen by its rank among the task's entries of all modules together.

    Passes over the modules count bits of the magnitudes, so that nothing larger than a few blocks is held: one pass
    the high bits, one the low bits of the entries that share the looked-for one's high bits. Where a sample tells
    what these will be, one pass is enough; it also shows whether the sample was right.

    Args:
        each_module: Calls a function on each module's blocks of values, an iterable a task.
        ranks_of: Called with the numbers of entries.
        each_sample: As ``each_module``, with a small part of the values.
    """
    if each_sample is not None:
        windows = [_likely_window(row, rank) for row, rank in _with_ranks(_total(each_sample(_high_counts)), ranks_of)]
        if max(window.width for window in windows) <= _WIDEST_WINDOW:
            selected = _select_within(each_module, ranks_of, windows)
            if None not in selected:
                return selected
    high = _with_ranks(_total(each_module(_high_counts)), ranks_of)
    return _select_within(each_module, ranks_of, [Window(_bin_of_rank(row, rank)[0], 1) for row, rank in high])


def _with_ranks(histograms: Sequence[Tensor], ranks_of: RanksOf) -> list[tuple[Tensor, int]]:
    """Return each histogram with the rank that is looked for in it."""
    return list(zip(histograms, ranks_of([int(row.sum()) for row in histograms]), strict=True))


def _likely_window(sample: Tensor, rank: int) -> Window:
    """Return between which high bins the magnitude of this rank should lie, by the histogram of a sample.

    The rank among n independent entries has a standard deviation of sqrt(n p (1 - p)); entries of one row or
    column are alike, which is taken for twice that.
    """
    count = int(sample.sum())
    if count == 0:
        return Window(0, 1)
    slack = 3 * 2 * math.sqrt(rank * (1 - rank / count)) + 1
    first, _ = _bin_of_rank(sample, max(1, math.floor(rank - slack)))
    last, _ = _bin_of_rank(sample, min(count, math.ceil(rank + slack)))
    return Window(first, last - first + 1)


def _select_within(each_module: EachEntries, ranks_of: RanksOf, windows: Sequence[Window]) -> list[Selected | None]:
    """Return each task's magnitude, or None where it does not lie in its window; one pass."""
    selected: list[Selected | None] = []
    totals = _total(each_module(lambda tasks: _window_counts(tasks, windows)))
    for (first, _), (counts, rank) in zip(windows, _with_ranks(totals, ranks_of), strict=True):
        below, inside = int(counts[0]), counts[1:-1]
        if int(counts.sum()) == 0:
            selected.append(Selected(0.0, 1, 0))
        elif below < rank <= below + int(inside.sum()):
            offset, place = _bin_of_rank(inside, rank - below)
            bits = torch.tensor((first << _LOW_BITS) + offset, dtype=torch.int32)
            selected.append(Selected(float(bits.view(torch.float32)), place, int(inside[offset])))
        else:
            selected.append(None)
    return selected


def _total(results: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Return the sum of the modules' counts, task by task."""
    totals: list[Tensor] = []
    for rows in results:
        totals = [total.add_(row) for total, row in zip(totals, rows, strict=True)] if totals else list(rows)
    return totals


def _high_counts(tasks: Sequence[Iterable[Tensor]]) -> list[Tensor]:
    """Return the histogram of the high bits of each task."""
    return [_histogram(blocks, lambda bits: bits.bitwise_right_shift_(_LOW_BITS), _HIGH_BINS) for blocks in tasks]


def _window_counts(tasks: Sequence[Iterable[Tensor]], windows: Sequence[Window]) -> list[Tensor]:
    """Return for each task how many entries lie below its window, have each of its magnitudes, and lie above it."""
    counts = []
    for blocks, (first, width) in zip(tasks, windows, strict=True):
        # Entries outside the window are counted, not selected: that would take longer.
        before, bins = (first << _LOW_BITS) - 1, width << _LOW_BITS
        counts.append(_histogram(blocks, partial(_place, before=before, last=bins + 1), bins + 2))
    return counts


def _place(bits: Tensor, before: int, last: int) -> Tensor:
    """Return, in place, where in a window each number lies: 0 up to ``before``, ``last`` above the window."""
    return bits.sub_(before).clamp_(0, last)


def _histogram(blocks: Iterable[Tensor], change: Callable[[Tensor], Tensor], bins: int) -> Tensor:
    """Return how often each number below ``bins`` occurs among the changed magnitudes.

    Args:
        blocks: Of one task's values.
        change: Called with magnitudes as integers of the same order, int32; returns numbers below ``bins`` in
            their place.
        bins: How many.
    """
    counts: Tensor | None = None
    buffer: Tensor | None = None
    filled = 0

    def count(counts: Tensor | None, values: Tensor) -> Tensor:
        added = torch.bincount(change(values.view(torch.int32)), minlength=bins)
        return added if counts is None else counts.add_(added)

    for block in blocks:  # a few together are worth a histogram
        values = block.detach().float().reshape(-1)
        if buffer is None or filled + len(values) > len(buffer):
            if filled:
                counts = count(counts, buffer[:filled])
            if buffer is None or len(values) > len(buffer):
                buffer = values.new_empty(max(_HISTOGRAM_ENTRIES, len(values)))
            filled = 0
        torch.abs(values, out=buffer[filled : filled + len(values)])
        filled += len(values)
    if filled:
        counts = count(counts, buffer[:filled])
    return torch.zeros(bins, dtype=torch.int64) if counts is None else counts


def _bin_of_rank(histogram: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the entry of that rank, and its rank within the bin, both ranks from 1."""
    cumulative = histogram.cumsum(0)
    found = min(int(torch.searchsorted(cumulative, rank)), len(histogram) - 1)
    return found, rank - int(cumulative[found] - histogram[found])
