"""Masks and descent: the pure functions below the methods."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergers.functional.masks import relative_ranks, tall_mask, up_to
from mergers.functional.optimize import adam
from mergers.functional.selection import select_magnitudes

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 1e-40, 3e38])  # so that many are equal


@quick
@given(data=st.data(), values=st.lists(few, min_size=1, max_size=40), size=st.integers(1, 9))
def test_up_to_keeps_exactly_as_many_as_asked_for(data, values, size):
    count = data.draw(st.integers(1, len(values)))
    blocks = torch.tensor(values).split(size)
    [last] = select_magnitudes(lambda function: [function([blocks])], lambda counts: [count])
    order = sorted(range(len(values)), key=lambda place: (abs(torch.tensor(values[place]).item()), place))
    assert abs(torch.tensor(values[order[count - 1]]).item()) == last.magnitude
    kept, seen = [], 0
    for block in blocks:
        part, seen = up_to(block, last, seen)
        kept.append(part)
    expected = torch.tensor(values)
    expected[order[count:]] = 0.0
    assert torch.equal(torch.cat(kept), expected)


def test_relative_ranks_by_hand():
    values = torch.tensor([[1.0, -5.0, 3.0], [2.0, -2.0, 2.0]])
    assert relative_ranks(values).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.5, 1.0]]
    assert relative_ranks(values[0]).tolist() == [0.0, 1.0, 0.5]
    assert relative_ranks(values[:, :1]).tolist() == [[0.5], [0.5]]


def test_a_task_does_not_want_what_the_others_hold_as_much_of():
    value = torch.tensor([1.0, 1.0, -1.0, 0.0])
    assert tall_mask(value, torch.tensor([2.0, 1.9, 0.1, 0.0]), 1.0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_adam_takes_the_steps_of_torch(steps):
    start = torch.linspace(-2, 3, 12).view(3, 4)
    value = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([value], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (value - 1).square().sum().backward()
        optimizer.step()
    before = start.clone()
    torch.testing.assert_close(adam(start, lambda x: 2 * (x - 1), steps, lr=0.05), value.detach())
    assert torch.equal(start, before)
