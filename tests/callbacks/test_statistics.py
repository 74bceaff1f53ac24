"""Means over seeds, their intervals, and what may be said of differences."""

import statistics

import pytest

from callbacks.statistics import Spread, paired, student_t_quantile


def test_a_spread_is_mean_and_sample_deviation():
    values = (0.61, 0.7, 0.64, 0.66)
    found = Spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.deviation == pytest.approx(statistics.stdev(values))
    assert found.half == pytest.approx(3.182446 * statistics.stdev(values) / 2)
    alone = Spread((0.5,))
    assert (alone.mean, alone.deviation, alone.half) == (0.5, None, None)
    assert f"{Spread((-1e-5, -1e-5)):+}" == "+0.0 ± 0.0"  # no sign of what is shown as nothing


def test_a_difference_is_paired_over_seeds():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), times t(2).
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.mean, found.half) == (pytest.approx(2.0), pytest.approx(4.302653 / 3**0.5))
    assert found.apart is False and not found.wins
    assert paired([1.0, 1.1, 1.2], [0.5, 0.61, 0.69]).wins
    assert not paired([0.5, 0.61, 0.69], [1.0, 1.1, 1.2]).wins  # apart, but below
    two = paired([1.0, 1.1], [0.5, 0.59])
    assert two.apart and not two.wins  # two seeds claim nothing
    assert paired([1.0], [0.5]).apart is None


def test_seeds_that_change_nothing_claim_nothing():
    same = paired([0.9, 0.8, 0.85], [0.8, 0.7, 0.75])  # 0.1 each time, but for rounding
    assert same.constant and same.apart is None and not same.wins
    equal = paired([0.9, 0.8, 0.85], [0.9, 0.8, 0.85])
    assert not equal.constant and equal.apart is False


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 4, 2.7764), (0.975, 9, 2.2622),
     (0.975, 19, 2.0930), (0.975, 30, 2.0423), (0.975, 31, 2.0395), (0.975, 120, 1.9799), (0.995, 6, 3.7074)],
)  # fmt: skip
def test_students_t_is_as_published(probability, freedom, expected):
    assert student_t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-5)
