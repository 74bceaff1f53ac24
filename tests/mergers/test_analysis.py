"""What `inspect` shows, against dense arithmetic."""

import itertools
import math

import pytest
import torch
from builders import random_adapter, random_adapters

from mergers import Adapter, DenseUpdate, LowRankUpdate, SheetbendError
from mergers.analysis import analyse, effective_rank, subspace_overlap

SHAPES = {"a": (9, 14), "b": (12, 5)}


def long_vector(adapter):
    return torch.cat([adapter[module].dense().double().flatten() for module in sorted(adapter)])


def test_pairs_agree_with_dense_arithmetic():
    adapters = random_adapters(3, shapes=SHAPES, ranks=2, scale=0.5)
    found = analyse(adapters)
    assert [(pair.first, pair.second) for pair in found.pairs] == list(
        itertools.combinations(["task_0", "task_1", "task_2"], 2)
    )
    for pair in found.pairs:
        one, other = (long_vector(a) for name in (pair.first, pair.second) for a in adapters if a.name == name)
        differ = one.sign() * other.sign() < 0
        assert pair.cosine == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-6)
        assert pair.sign_conflict == pytest.approx(float(differ.double().mean()), abs=1e-9)
        product = (one * other).abs()
        assert pair.weighted_conflict == pytest.approx(float(product[differ].sum() / product.sum()), abs=1e-6)
        magnitudes = float(one.abs() @ other.abs() / one.norm() / other.norm())
        assert pair.cosine == pytest.approx((1 - 2 * pair.weighted_conflict) * magnitudes, abs=1e-6)


def test_overlap_is_the_mean_squared_cosine_of_principal_angles():
    adapters = [random_adapter("one", SHAPES, 2, seed=1), random_adapter("other", SHAPES, 3, seed=2)]
    (pair,) = analyse(adapters).pairs
    inputs, outputs = [], []
    for module in SHAPES:
        one, other = (torch.linalg.svd(adapter[module].dense().double()) for adapter in adapters)
        inputs.append(torch.linalg.svdvals(one.Vh[:2] @ other.Vh[:3].T).square().mean())
        outputs.append(torch.linalg.svdvals(one.U[:, :2].T @ other.U[:, :3]).square().mean())
    assert pair.inputs == pytest.approx(float(sum(inputs)) / 2, abs=1e-6)
    assert pair.outputs == pytest.approx(float(sum(outputs)) / 2, abs=1e-6)
    assert pair.inputs_by_chance == pytest.approx((3 / 14 + 3 / 5) / 2)
    assert pair.outputs_by_chance == pytest.approx((3 / 9 + 3 / 12) / 2)


def test_random_directions_overlap_as_by_chance_says():
    shapes = {f"m{index}": (20, 30) for index in range(60)}
    (pair,) = analyse([random_adapter("one", shapes, 2, seed=1), random_adapter("other", shapes, 5, seed=2)]).pairs
    assert pair.inputs == pytest.approx(pair.inputs_by_chance, rel=0.15)
    assert pair.outputs == pytest.approx(pair.outputs_by_chance, rel=0.15)


def test_an_adapter_against_itself_and_its_opposite():
    (adapter,) = random_adapters(1, shapes=SHAPES)
    opposite = Adapter({module: update.scaled(-2.0) for module, update in adapter.items()}, "opposite")
    (pair,) = analyse([adapter, opposite]).pairs
    assert pair.cosine == pytest.approx(-1, abs=1e-6)
    assert pair.inputs == pytest.approx(1, abs=1e-9) and pair.outputs == pytest.approx(1, abs=1e-9)
    assert pair.sign_conflict == 1 and pair.weighted_conflict == pytest.approx(1, abs=1e-6)


def test_own_numbers():
    (adapter,) = random_adapters(1, shapes=SHAPES, scale=3.0)
    found = analyse([adapter])
    assert found.pairs == [] and found.skipped == []
    assert found.norm("task_0") == pytest.approx(float(long_vector(adapter).norm()), rel=1e-6)
    for module, facts in found.adapters["task_0"].items():
        weights = torch.linalg.svdvals(adapter[module].dense().double())[:2].square()
        weights /= weights.sum()
        assert facts.effective_rank == pytest.approx(math.exp(-float((weights * weights.log()).sum())), rel=1e-5)
        assert (facts.rank, facts.scale) == (2, 3.0)


def test_a_spectrum_of_one_direction_has_effective_rank_one():
    assert effective_rank(torch.tensor([2.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3)) == 0.0
    assert subspace_overlap(torch.eye(3)[:, :0], torch.eye(3)) is None


def test_numbers_are_the_same_for_dense_updates_and_many_threads():
    adapters = random_adapters(2, shapes=SHAPES)
    dense = [Adapter({m: DenseUpdate(u.dense()) for m, u in a.items()}, a.name) for a in adapters]
    one, other = analyse(adapters).pairs[0], analyse(dense).pairs[0]
    for name in ("cosine", "inputs", "outputs", "sign_conflict", "weighted_conflict"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5), name
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert analyse(adapters) == analyse(adapters)
        assert analyse(adapters).pairs[0] == one
    finally:
        torch.set_num_threads(before)


def test_zero_updates_vectors_and_modules_of_one_are_no_fault():
    base = dict(random_adapters(1, shapes=SHAPES)[0])
    zero = {
        module: LowRankUpdate(A=torch.zeros(0, u.shape[1]), B=torch.zeros(u.shape[0], 0)) for module, u in base.items()
    }
    vector = {"bias": DenseUpdate(torch.tensor([1.0, -2.0, 3.0]))}
    one = Adapter({**base, **vector, "only": base["a"]}, "one")
    other = Adapter({**zero, "bias": DenseUpdate(torch.tensor([1.0, 2.0, 0.0]))}, "other")
    found = analyse([one, other])
    assert found.skipped == ["only"] and found.norm("other") == pytest.approx(math.sqrt(5))
    (pair,) = found.pairs
    assert pair.inputs is None and pair.inputs_by_chance is None
    assert pair.sign_conflict == 0.5  # of the two entries that are not zero in both
    assert found.adapters["one"]["bias"].effective_rank == 1.0
    with pytest.raises(SheetbendError, match="two adapters are named 'one'"):
        analyse([one, one])
