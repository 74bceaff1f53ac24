"""Means over seeds, and what may be said of their differences."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Seeds from which on a difference may be called a win.
SEEDS_TO_CLAIM = 3
# Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T95 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def t95(freedom: int) -> float:
    """Return the two-sided 95 % point of Student's t.

    >>> t95(2), round(t95(60), 3)
    (4.303, 2.0)
    """
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964  # Cornish and Fisher's expansion, good to 1e-3 from here on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds in short.

    Attributes:
        mean: of all.
        deviation: the sample standard deviation; none of one number.
        count: how many there are.
    """

    mean: float
    deviation: float | None
    count: int


def spread_of(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation.

    >>> spread_of([1.0, 2.0, 3.0])
    Spread(mean=2.0, deviation=1.0, count=3)
    """
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(math.fsum(values) / len(values), deviation, len(values))


@dataclass(frozen=True)
class Difference:
    """By how much one variant is above another, paired over seeds.

    Attributes:
        mean: of the differences.
        half: half the width of the 95 % interval; none with one seed.
        count: seeds.
    """

    mean: float
    half: float | None
    count: int

    @property
    def apart(self) -> bool | None:
        """Whether the interval excludes zero; none with one seed."""
        return None if self.half is None else abs(self.mean) > self.half

    @property
    def wins(self) -> bool:
        """Whether the first may be said to win: enough seeds, and an interval above zero."""
        return self.count >= SEEDS_TO_CLAIM and bool(self.apart) and self.mean > 0


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the mean of ``first - second`` and its interval by Student's t.

    Args:
        first: a number a seed.
        second: those of the other variant, of the same seeds in the same order.

    >>> paired([0.9, 0.8, 0.85], [0.8, 0.7, 0.75]).wins, paired([0.9, 0.8], [0.8, 0.7]).wins
    (True, False)
    """
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    found = spread_of(gaps)
    if found.deviation is None:
        return Difference(found.mean, None, 1)
    return Difference(found.mean, t95(found.count - 1) * found.deviation / math.sqrt(found.count), found.count)
