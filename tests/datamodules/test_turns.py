import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.turns import EvalSampler, TaskOrder, TurnSampler, interleave, turn_count


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), min_size=1), st.integers(1, 4))
def test_every_batch_comes_once_in_order_and_a_step_never_mixes_tasks(batches, turn):
    items = list(interleave(batches, turn))
    assert len(items) == turn_count(batches, turn)
    for task, count in batches.items():
        assert [number for name, number in items if name == task and number is not None] == list(range(count))
    for start in range(0, len(items), turn):
        step = items[start : start + turn]
        assert len({task for task, _ in step}) == 1
        assert step[-1][1] is not None


def test_tasks_take_turns_and_the_longer_goes_on_alone():
    assert [task for task, _ in interleave({"a": 3, "b": 1, "c": 2})] == ["a", "b", "c", "a", "c", "a"]


def test_a_pass_holds_every_example_once_and_the_next_is_shuffled_anew():
    order = TaskOrder("a", size=10, batch_size=4, seed=0)
    first, second = ([order.batch(3 * p + i) for i in range(3)] for p in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(10))
    assert first != second


def sampler(tasks, epoch=0, batches=5, turn=1, finished=tuple):
    orders = {task: TaskOrder(task, 13, 4, seed=7) for task in tasks}
    made = TurnSampler(orders, dict.fromkeys(tasks, batches), turn, finished)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("turn", [1, 2])
def test_a_task_sees_the_same_batches_alone_and_together(turn):
    together = list(sampler(["x", "y", "z"], turn=turn))
    alone = list(sampler(["y"], turn=turn))
    assert [key for key in together if key[0] == "y"] == alone
    assert [key[1] for key in together if key[0] == "x"] != [key[1] for key in alone]


def test_a_resumed_epoch_goes_on_where_the_last_one_ended():
    one_sampler = sampler(["x"])
    whole = []
    for epoch in range(4):
        one_sampler.set_epoch(epoch)
        whole.append(list(one_sampler))
    assert [list(sampler(["x"], epoch)) for epoch in range(4)] == whole
    # Passes of four batches run on through epochs of five.
    indices = [index for _, batch in itertools.chain(*whole) for index in batch]
    assert sorted(indices[:13]) == sorted(indices[13:26]) == list(range(13))


def test_a_resumed_sampler_leaves_out_what_was_had_in_that_epoch_only():
    made = sampler(["x", "y"], epoch=2)
    whole = list(made)
    made.resume_at(2, 3)
    assert list(made) == whole[3:] and len(made) == len(whole)
    made.set_epoch(3)
    assert len(list(made)) == len(whole)


def test_the_order_follows_the_seed():
    orders = [TaskOrder("a", 50, 50, seed).batch(0) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_finished_task_has_empty_turns_and_the_length_stays():
    made = sampler(["x", "y"], finished=lambda: ("y",))
    keys = list(made)
    assert len(keys) == len(made) == 10
    assert all((batch is None) == (task == "y") for task, batch in keys)


def test_evaluation_goes_through_the_examples_in_order():
    made = EvalSampler("a", range(7), 3)
    assert list(made) == [("a", [0, 1, 2]), ("a", [3, 4, 5]), ("a", [6])]
    assert len(made) == 3
