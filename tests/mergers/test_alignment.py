"""Centred kernel alignment, against its definition by Gram matrices of all examples."""

import doctest

import pytest
import torch

from mergers.functional import alignment
from mergers.functional.alignment import add_rows, linear_cka, linear_cka_of_maps


def slow_cka(X, Y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T and L = Y Y^T, centred on both sides."""
    count = len(X)
    H = torch.eye(count, dtype=torch.float64) - 1 / count
    K, L = (part.double() @ part.double().T for part in (X, Y))

    def hsic(one, other):
        return torch.trace(one @ H @ other @ H)

    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_cka_is_that_of_gram_matrices(generator):
    X = torch.randn(30, 7, generator=generator) + 3
    Y = torch.randn(30, 4, generator=generator) @ torch.randn(4, 9, generator=generator) + X[:, :1]
    assert linear_cka(X, Y) == pytest.approx(slow_cka(X, Y), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator)).Q
    assert linear_cka(X, 2 * X @ rotation - 5) == pytest.approx(1.0)
    assert linear_cka(X, X @ torch.randn(7, 7, generator=generator)) < 0.99  # other maps change it


@pytest.mark.parametrize("ranks", [(2, 3, 1), (6, 6, 6)])
def test_maps_of_streamed_inputs_give_the_cka_of_their_outputs(generator, ranks):
    x = torch.randn(50, 6, generator=generator) * torch.arange(1, 7) + 2
    factors = [(torch.randn(8, r, generator=generator), torch.randn(r, 6, generator=generator)) for r in ranks]
    moments = None
    for rows in x.split([1, 7, 30, 12]):
        moments = add_rows(moments, rows)
    found = linear_cka_of_maps([B @ A for B, A in factors], moments.scatter)
    slow = [[slow_cka(x @ (B @ A).T, x @ (D @ C).T) for D, C in factors] for B, A in factors]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    stacked = torch.cat([A for _, A in factors])  # what is streamed may be A x instead
    places = torch.eye(len(stacked)).split(list(ranks))
    own = linear_cka_of_maps([B @ place for (B, _), place in zip(factors, places, strict=True)],
                             add_rows(None, x @ stacked.T).scatter)  # fmt: skip
    torch.testing.assert_close(own, found, rtol=1e-5, atol=1e-6)


def test_an_update_of_nothing_has_no_cka(generator):
    scatter = add_rows(None, torch.randn(9, 3, generator=generator)).scatter
    found = linear_cka_of_maps([torch.zeros(2, 3), torch.ones(2, 3)], scatter)
    assert found[0].isnan().all() and found[1, 1] == pytest.approx(1.0)


def test_doctests():
    assert doctest.testmod(alignment).failed == 0
