"""Singular value decompositions of products that are never formed. float64 inside."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # (out, r) and (r, in); the matrix is their product


class SVD(NamedTuple):
    """U diag(s) Vh, with orthonormal columns of U and rows of Vh.

    Attributes:
        U: (out, k).
        s: (k,), descending.
        Vh: (k, in).
    """

    U: Tensor
    s: Tensor
    Vh: Tensor


class ConcatenatedSVD(NamedTuple):
    """SVD of [delta_1 | ... | delta_T], with the right singular vectors still factored task by task.

    Attributes:
        U: (out, k) float64.
        s: (k,) float64, descending.
        V: One pair a task, (k, r_i) and (r_i, in) float64: their product is V_i, the task's columns of Vh.
    """

    U: Tensor
    s: Tensor
    V: list[Factors]


def svd_of_matrix(matrix: Tensor) -> SVD:
    """Return the SVD of an (out, in) matrix: k = min(out, in) triplets, float64."""
    return SVD(*torch.linalg.svd(matrix.double(), full_matrices=False))


def svd_of_product(B: Tensor, A: Tensor) -> SVD:
    """Return the SVD of B @ A by QR of both factors and the SVD of an (r, r) matrix.

    Args:
        B: (out, r).
        A: (r, in).

    Returns:
        k = min(r, out, in) triplets, float64.
    """
    left, left_triangle = torch.linalg.qr(B.double())
    right, right_triangle = torch.linalg.qr(A.double().T)
    U, s, Vh = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
    return SVD(left @ U, s, Vh @ right.T)


def svd_of_concatenation(tasks: Sequence[Factors]) -> ConcatenatedSVD:
    """Return the SVD of [B_1 A_1 | ... | B_T A_T] by QR of [B_1 | ... | B_T] and of each A_i^T.

    With [B_1 | ... | B_T] = Q R and A_i^T = Q_i R_i, the concatenation is Q M blockdiag(Q_i^T) with
    M = [R_(1) R_1^T | ... | R_(T) R_T^T], of at most sum(r_i) rows and columns, where R_(i) are
    task i's columns of R. The SVD of M therefore gives U, s and each V_i.

    The sign of each singular vector is fixed: the entry of U largest in magnitude is positive. U then does
    not depend on the order of the tasks, as far as the singular values differ.

    Args:
        tasks: B_i (out, r_i) and A_i (r_i, in), one pair a task.

    Returns:
        k = min(out, sum(min(r_i, in))) triplets.
    """
    Q, R = torch.linalg.qr(torch.cat([B for B, _ in tasks], dim=1).double())
    blocks, rights = [], []
    for R_task, (_, A) in zip(R.split([A.shape[0] for _, A in tasks], dim=1), tasks, strict=True):
        right, triangle = torch.linalg.qr(A.double().T)
        blocks.append(R_task @ triangle.T)
        rights.append(right.T)
    U, s, Vh = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    U = Q @ U
    signs = _column_signs(U)
    Vh = signs[:, None] * Vh
    lefts = Vh.split([block.shape[1] for block in blocks], dim=1)
    return ConcatenatedSVD(U * signs, s, list(zip(lefts, rights, strict=True)))


def svd_of_tall(matrix: Tensor) -> SVD:
    """Return the SVD of an (out, R) matrix by QR and the SVD of the triangle, which costs little where R is small.

    The sign of each singular vector is fixed as in `svd_of_concatenation`.

    Returns:
        k = min(out, R) triplets, float64.
    """
    Q, R = torch.linalg.qr(matrix.double())
    U, s, Vh = torch.linalg.svd(R, full_matrices=False)
    U = Q @ U
    signs = _column_signs(U)
    return SVD(U * signs, s, signs[:, None] * Vh)


def nearest_orthonormal(matrix: Tensor, cutoff: float = 1e-10) -> Tensor:
    """Return the matrix with orthonormal columns that is nearest to ``matrix``: its polar factor, float64.

    Where the columns depend on each other, only their span is made orthonormal (a partial isometry), so that no
    direction is invented.

    Args:
        matrix: (n, k).
        cutoff: Singular values up to this fraction of the largest count as zero.

    >>> nearest_orthonormal(torch.diag(torch.tensor([3.0, 0.5])))
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    U, s, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = numerical_rank(s, cutoff)
    return U[:, :rank] @ Vh[:rank]


def truncated_svd(
    matrix: Tensor, rank: int, start: Tensor | None = None, iterations: int | None = None, oversampling: int = 16
) -> SVD:
    """Return leading singular triplets of a dense matrix by randomised subspace iteration, float32.

    What is kept is a projection, U U^T matrix, so its error is known exactly from norms. It is near that of the
    true leading triplets: some 0.3 % above it where the spectrum is flat, closer where it falls.

    Paper: Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 2011 (arXiv 0909.4061).

    Args:
        matrix: (out, in).
        rank: How many triplets, up to min(out, in).
        start: (out, n), columns whose span is near the one that is looked for; random directions fill it up.
        iterations: Products with matrix @ matrix.T; each brings the subspace nearer to the best one. By default 3
            with a start and 5 without.
        oversampling: Further directions that are iterated and then dropped.
    """
    matrix = matrix.float()
    width = min(rank + oversampling, *matrix.shape)
    if 2 * width >= min(matrix.shape):
        U, s, Vh = svd_of_matrix(matrix)
        return SVD(U[:, :rank].float(), s[:rank].float(), Vh[:rank].float())
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator).to(matrix.device)

    if start is None:
        Q = matrix @ random(matrix.shape[1], width)
    elif start.shape[1] > width:  # the part of it that the matrix reaches most
        start = start.float()
        Q = start @ (start.T @ (matrix @ random(matrix.shape[1], width)))
    else:
        Q = torch.cat([start.float(), matrix @ random(matrix.shape[1], width - start.shape[1])], dim=1)
    if iterations is None:
        iterations = 5 if start is None else 3
    Q = torch.linalg.qr(Q).Q
    for _ in range(iterations):
        Q = torch.linalg.qr(matrix.T @ Q).Q
        Q = torch.linalg.qr(matrix @ Q).Q
    V, s, Uh = svd_of_tall(matrix.T @ Q)
    return SVD(Q @ Uh[:rank].T.float(), s[:rank].float(), V[:, :rank].T.float())


def _column_signs(U: Tensor) -> Tensor:
    """Return the sign of the largest entry in magnitude of each column, 1 for a column of zeros."""
    if U.numel() == 0:
        return U.new_ones(U.shape[1])
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0).to(U.dtype)


def without_rounding(matrix: Tensor, scale: float) -> Tensor:
    """Return a float64 matrix in which entries that are zero but for rounding are zero.

    A method that counts the tasks that have a say in an entry must not count those whose own update has nothing there,
    such as a task that left the module alone.

    Args:
        matrix: Computed in float64 from numbers up to ``scale``.
        scale: Its largest singular value.

    >>> without_rounding(torch.tensor([1.0, -1e-16], dtype=torch.float64), 1.0)
    tensor([1., 0.], dtype=torch.float64)
    """
    # In place, so that it lies in memory as it did, which kernels of products may depend on.
    return matrix.clone().masked_fill_(matrix.abs() <= 1e-14 * scale, 0.0)


def numerical_rank(s: Tensor, cutoff: float, relative: bool = True) -> int:
    """Return how many singular values exceed ``cutoff``, times the largest if ``relative``.

    >>> numerical_rank(torch.tensor([10.0, 1.0, 1e-5]), cutoff=1e-5)
    2
    """
    if s.numel() == 0:
        return 0
    return int((s > (cutoff * s.max() if relative else cutoff)).sum())


def sum_of_squares(tensor: Tensor) -> float:
    """Return the squared Frobenius norm, summed in float64, without a float64 copy of the whole.

    >>> sum_of_squares(torch.tensor([3.0, 4.0]))
    25.0
    """
    parts = tensor.detach().reshape(-1).split(1 << 18)
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64).square()) for part in parts)


def all_finite(tensor: Tensor) -> bool:
    """Return whether no entry is NaN or infinite."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())  # NaN spreads; much faster than isfinite().all()
    return math.isfinite(low) and math.isfinite(high)
