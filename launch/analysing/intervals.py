"""Means of few numbers, and how sure they are."""

import math
import statistics
from collections.abc import Sequence


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Return the mean, and half the width of its interval by Student's t; none of a single number.

    >>> mean, half = mean_and_interval([1.0, 2.0, 3.0, 4.0])
    >>> mean, round(half, 4)
    (2.5, 2.0543)
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    quantile = student_t_quantile(0.5 + level / 2, len(values) - 1)
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


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
