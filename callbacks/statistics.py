"""Numbers of several runs: their mean, their spread, and what may be said of the difference of two of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

#: Seeds from which on a difference may be called a win.
SEEDS_TO_CLAIM = 3
# Differences of fractions that are equal but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Spread:
    """One number over several runs; as text in %, ``+`` in its format gives the mean a sign.

    Attributes:
        values: one a run, at least one, as fractions.

    >>> f"{Spread((0.5, 0.7))}", f"{Spread((0.5,)):+}"
    ('60.0 ± 14.1', '+50.0')
    """

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean."""
        return math.fsum(self.values) / self.count

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, divided by n - 1; none of one run."""
        if self.count == 1:
            return None
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (self.count - 1))

    @property
    def half(self) -> float | None:
        """Half the width of the mean's 95 % interval by Student's t; none of one run.

        >>> round(Spread((1.0, 2.0, 3.0, 4.0)).half, 4)
        2.0543
        """
        if self.count == 1:
            return None
        return student_t_quantile(0.975, self.count - 1) * self.deviation / math.sqrt(self.count)

    def __format__(self, sign: str) -> str:
        mean = f"{100 * self.mean:{sign}z.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


@dataclass(frozen=True)
class Difference(Spread):
    """By how much one variant is above another, paired over seeds: a difference a seed."""

    @property
    def constant(self) -> bool:
        """Whether it is the same, and not zero, with each of several seeds.

        The interval then has no width, which says that seeds change nothing, not that the difference is sure.
        """
        return self.count > 1 and self.deviation <= _ROUNDING and abs(self.mean) > _ROUNDING

    @property
    def apart(self) -> bool | None:
        """Whether the 95 % interval excludes zero; none where there is none: of one seed, or if `constant`."""
        return None if self.count == 1 or self.constant else abs(self.mean) > max(self.half, _ROUNDING)

    @property
    def wins(self) -> bool:
        """Whether the first may be said to win: enough seeds, and an interval above zero."""
        return self.count >= SEEDS_TO_CLAIM and bool(self.apart) and self.mean > 0


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return ``first - second``.

    Args:
        first: a number a seed.
        second: those of the other variant, of the same seeds in the same order.

    >>> paired([0.9, 0.8, 0.85], [0.8, 0.69, 0.76]).wins, paired([0.9, 0.8], [0.8, 0.69]).wins
    (True, False)
    """
    return Difference(tuple(a - b for a, b in zip(first, second, strict=True)))


@cache
def student_t_quantile(probability: float, freedom: int) -> float:
    """Return the number below which Student's t falls with this probability, above one half.

    By bisection of the distribution, which for whole degrees of freedom is a finite sum (Abramowitz and Stegun,
    26.7.3 and 26.7.4).

    >>> round(student_t_quantile(0.975, 1), 3), round(student_t_quantile(0.975, 9), 4)
    (12.706, 2.2622)
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability of a value between -t and t."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for n in range(2 + odd, freedom - 1, 2):
        term *= (n - 1) / n * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
