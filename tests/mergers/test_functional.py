import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergers.functional.consensus import disjoint_merge, elect_signs, resolve_zero_signs
from mergers.functional.linalg import numerical_rank, svd_of_concatenation, svd_of_product
from mergers.functional.sparsify import (
    drop_and_rescale,
    keep_large,
    magnitude_threshold,
    magnitude_thresholds,
    threshold_rank,
)
from mergers.functional.spectral import nuclear_norm_rank, truncate_and_rescale

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def sorted_threshold(values, density):
    ordered = values.abs().flatten().sort().values
    return ordered[threshold_rank(len(ordered), density) - 1] if len(ordered) else torch.tensor(0.0)


@quick
@given(
    modules=st.lists(st.lists(finite, max_size=30), min_size=1, max_size=4),
    density=st.floats(0.01, 1.0),
)
def test_global_selection_equals_a_sort(modules, density):
    """Subnormal, huge, equal and zero magnitudes included; a second task holds the negated halves."""
    tasks = [[torch.tensor(m), -torch.tensor(m)[: len(m) // 2]] for m in modules]
    blocks = [[values.split(7) for values in module] for module in tasks]
    thresholds = magnitude_thresholds(lambda function: map(function, blocks), density)
    for task in range(2):
        everything = torch.cat([module[task] for module in tasks])
        assert thresholds[task] == sorted_threshold(everything, density)


@quick
@given(values=st.lists(finite, min_size=1, max_size=50), density=st.floats(0.01, 1.0))
def test_local_threshold_equals_a_sort(values, density):
    values = torch.tensor(values)
    assert magnitude_threshold(values, density) == sorted_threshold(values, density)


@pytest.mark.parametrize(("density", "kept"), [(0.1, 11), (0.5, 51), (0.999, 100), (1.0, 100)])
def test_number_of_entries_kept(density, kept):
    values = torch.randperm(100).float() - 200
    assert int(keep_large(values, magnitude_threshold(values, density)).count_nonzero()) == kept


def test_thresholds_of_nothing_are_zero():
    assert magnitude_threshold(torch.zeros(0, 4), 0.2) == 0
    nothing = [[torch.zeros(0)], [torch.ones(3)]]
    assert magnitude_thresholds(lambda function: [function(nothing)], 0.2) == [0, 1]


def test_drop_and_rescale_keeps_all_at_rate_zero():
    values = torch.randn(5, 5)
    assert torch.equal(drop_and_rescale(values, 0.0, torch.Generator()), values)


def test_zero_votes():
    signs = torch.tensor([1.0, 0.0, -1.0])
    assert resolve_zero_signs(signs, -7.0).tolist() == [1, -1, -1]
    assert resolve_zero_signs(signs, 0.0).tolist() == [1, 0, -1]


def test_disjoint_merge_by_hand():
    values = torch.tensor([[3.0, 1.0, 0.0, -2.0], [1.0, -2.0, 0.0, -4.0], [-1.0, 0.0, 0.0, 1.0]])
    signs = elect_signs(values)
    assert signs.tolist() == [1, -1, 0, -1]
    weights = torch.tensor([1.0, 10.0, 100.0])
    assert disjoint_merge(values, signs, weights, "sum").tolist() == [13, -20, 0, -42]
    assert disjoint_merge(values, signs, weights, "mean").tolist() == [6.5, -20, 0, -21]
    assert disjoint_merge(values, signs, weights, "max").tolist() == [10, -20, 0, -40]


@pytest.mark.parametrize("sizes", [(9, 7, 3), (4, 9, 6), (9, 2, 5), (3, 3, 3)])
def test_svd_of_product(sizes):
    rows, columns, rank = sizes
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    U, s, Vh = svd_of_product(B, A)
    expected = torch.linalg.svdvals(B.double() @ A.double())[: len(s)]
    torch.testing.assert_close(s, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(U @ torch.diag(s) @ Vh, B.double() @ A.double(), rtol=1e-12, atol=1e-12)
    eye = torch.eye(len(s), dtype=torch.float64)
    torch.testing.assert_close(U.T @ U, eye)
    torch.testing.assert_close(Vh @ Vh.T, eye)


@pytest.mark.parametrize(("rows", "ranks"), [(20, (3, 2, 4)), (5, (3, 3)), (8, (4,)), (6, (9, 2))])
def test_svd_of_concatenation_equals_the_dense_one(rows, ranks):
    generator = torch.Generator().manual_seed(1)
    tasks = [
        (torch.randn(rows, rank, generator=generator), torch.randn(rank, 7, generator=generator)) for rank in ranks
    ]
    dense = torch.cat([B.double() @ A.double() for B, A in tasks], dim=1)
    U, s, V = svd_of_concatenation(tasks)
    Vh = torch.cat([left @ right for left, right in V], dim=1)
    torch.testing.assert_close(U * s @ Vh, dense, rtol=1e-12, atol=1e-12)
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s, expected[: len(s)], rtol=1e-10, atol=1e-10)
    assert (expected[len(s) :] < 1e-10).all(), "no direction is missing"
    torch.testing.assert_close(U.T @ U, torch.eye(len(s), dtype=torch.float64))
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all(), "the sign convention"


def test_basis_does_not_depend_on_the_order_of_tasks():
    generator = torch.Generator().manual_seed(2)
    tasks = [(torch.randn(8, 2, generator=generator), torch.randn(2, 6, generator=generator)) for _ in range(3)]
    forward, backward = svd_of_concatenation(tasks), svd_of_concatenation(tasks[::-1])
    torch.testing.assert_close(forward.U, backward.U, rtol=1e-9, atol=1e-9)


def test_numerical_rank():
    s = torch.tensor([2.0, 1e-3, 1e-6])
    assert numerical_rank(s, 1e-5) == 2
    assert numerical_rank(s, 1e-7) == 3
    assert numerical_rank(s, 1e-5, relative=False) == 2
    assert numerical_rank(s, 0.5, relative=False) == 1
    assert numerical_rank(torch.zeros(3), 1e-5) == numerical_rank(torch.zeros(0), 1e-5) == 0


@pytest.mark.parametrize(("percent", "rank"), [(1, 1), (39, 1), (41, 2), (69, 2), (71, 3), (100, 4)])
def test_nuclear_norm_rank(percent, rank):
    assert nuclear_norm_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), percent) == rank


def test_truncation_keeps_the_nuclear_norm():
    generator = torch.Generator().manual_seed(3)
    svd = svd_of_product(torch.randn(6, 4, generator=generator), torch.randn(4, 5, generator=generator))
    truncated = truncate_and_rescale(svd, 80)
    assert len(truncated.s) < 4
    torch.testing.assert_close(truncated.s.sum(), svd.s.sum())
    torch.testing.assert_close(truncated.s[0] / truncated.s[1], svd.s[0] / svd.s[1])
