import itertools

import pytest

from lightning_modules.progress import TaskProgress, steps_of_each, warmup_cosine


def test_schedule_rises_to_one_and_falls_to_zero():
    factors = [warmup_cosine(step, total=50, warmup=10) for step in range(51)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert all(a <= b for a, b in itertools.pairwise(factors[:10]))
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[50] == 0.0
    assert factors[49] > 0


def test_schedule_without_warmup_starts_at_the_peak():
    assert warmup_cosine(0, total=5, warmup=0) == 1.0


@pytest.mark.parametrize("max_steps", range(1, 25))
def test_steps_within_a_budget_equal_a_walk_through_the_turns(max_steps):
    per_epoch = {"a": 3, "b": 1, "c": 2}
    walk = itertools.cycle(["a", "b", "c", "a", "c", "a"])
    counted = dict.fromkeys(per_epoch, 0)
    for name in itertools.islice(walk, min(max_steps, 18)):
        counted[name] += 1
    assert steps_of_each(per_epoch, max_epochs=3, max_steps=max_steps) == counted


def test_early_stop_waits_for_a_real_gain():
    progress = TaskProgress()
    history = [0.5, 0.6, 0.6004, 0.6008, 0.59]
    improved = [progress.record(accuracy, min_delta=1e-3, patience=3) for accuracy in history]
    assert improved == [True, True, True, True, False]
    assert progress.finished and progress.waited == 3
    assert progress.best == 0.6008


def test_a_gain_resets_the_patience():
    progress = TaskProgress()
    for accuracy in [0.5, 0.5, 0.7, 0.6]:
        progress.record(accuracy, min_delta=1e-3, patience=2)
    assert not progress.finished
    assert progress.record(0.6, min_delta=1e-3, patience=2) is False
    assert progress.finished


def test_the_earlier_of_two_equals_is_best():
    progress = TaskProgress(batches=10)
    assert progress.record(0.5, min_delta=1e-3, patience=None)
    progress.batches = 20
    assert not progress.record(0.5, min_delta=1e-3, patience=None)
    assert progress.best_batches == 10 and not progress.finished
