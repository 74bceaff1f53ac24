"""Centred kernel alignment: how alike two sets of activations are, whatever rotation and scale they come in."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Moments of rows that need not be held together.

    Attributes:
        count: How many rows.
        mean: (d,) float64.
        scatter: (d, d) float64, the sum over rows of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Tensor
    scatter: Tensor


def add_rows(moments: Moments | None, rows: Tensor) -> Moments:
    """Return the moments with more rows counted in (Chan, Golub and LeVeque, 1979).

    Args:
        moments: Of the rows so far; None: there are none.
        rows: (n, d), n of at least 1.

    >>> whole = add_rows(add_rows(None, torch.tensor([[1.0], [2.0]])), torch.tensor([[6.0]]))
    >>> whole.count, whole.mean.item(), whole.scatter.item()
    (3, 3.0, 14.0)
    """
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    scatter = centred.T @ centred
    if moments is None:
        return Moments(len(rows), mean, scatter)
    count = moments.count + len(rows)
    step = mean - moments.mean
    between = torch.outer(step, step) * (moments.count * len(rows) / count)
    return Moments(count, moments.mean + step * (len(rows) / count), moments.scatter + scatter + between)


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Return |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred X and Y, in Frobenius norms: from 0 to 1; nan of constant ones.

    Paper: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019 (arXiv 1905.00414).

    Args:
        one: X, (n, p): p activations of n examples.
        other: Y, (n, q), of the same examples.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> round(linear_cka(x, 3 * x.flip(1) + 1), 6)
    1.0
    """
    one, other = (part.double() - part.double().mean(0) for part in (one, other))
    own = (one.T @ one).norm() * (other.T @ other).norm()
    return float((other.T @ one).square().sum() / own)


def linear_cka_of_maps(maps: Sequence[Tensor], scatter: Tensor) -> Tensor:
    """Return the linear CKA of each two of the activations y_i = M_i z, of which only the scatter of z is known.

    |Y_j^T Y_i|^2 is |M_j C M_i^T|^2, the trace of (M_i^T M_i C)(M_j^T M_j C), C the scatter: no y is made.

    Args:
        maps: M_i, (out_i, d), T of them.
        scatter: C, (d, d) float64.

    Returns:
        (T, T) float64, symmetric, ones on the diagonal; nan where some y_i is constant.
    """
    products = [(M.double().T @ M.double()) @ scatter for M in maps]
    dots = torch.stack([torch.stack([(one * other.T).sum() for other in products]) for one in products])
    norms = dots.diagonal().clamp(min=0).sqrt()
    return (dots / torch.outer(norms, norms)).clamp(max=1.0)
