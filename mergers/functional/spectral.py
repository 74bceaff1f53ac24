"""Work on singular values."""

import torch
from torch import Tensor

from mergers.functional.linalg import SVD, numerical_rank


def nuclear_norm_rank(s: Tensor, percent: float) -> int:
    """Return how many of the largest singular values hold ``percent`` % of their sum.

    >>> nuclear_norm_rank(torch.tensor([4.0, 3.0, 2.0, 1.0]), percent=60)
    2
    """
    if s.numel() == 0:
        return 0
    reached = torch.searchsorted(s.cumsum(0), s.sum() * (percent / 100)).item()
    return min(int(reached) + 1, s.numel())


def truncate_and_rescale(svd: SVD, percent: float) -> SVD:
    """Keep the largest singular values up to ``percent`` % of the nuclear norm, scaled to the whole of it.

    Paper: Lee et al., STAR: Spectral Truncation and Rescale for Model Merging, NAACL 2025 (arXiv 2502.10339).

    Args:
        svd: k triplets.
        percent: eta, in (0, 100].

    Returns:
        The triplets kept, with s times sum(s) / sum(kept s).
    """
    U, s, Vh = svd
    rank = nuclear_norm_rank(s, percent)
    kept = s[:rank]
    norm = kept.sum()
    rescaled = kept * (s.sum() / norm) if norm > 0 else kept
    return SVD(U[:, :rank], rescaled, Vh[:rank])


def flatten_spectrum(svd: SVD, cutoff: float) -> SVD:
    """Set all singular values above ``cutoff`` times the largest to their mean, and drop the others.

    >>> flatten_spectrum(SVD(torch.eye(3), torch.tensor([3.0, 1.0, 0.0]), torch.eye(3)), cutoff=1e-6).s
    tensor([2., 2.])
    """
    rank = numerical_rank(svd.s, cutoff)
    s = svd.s[:rank]
    return SVD(svd.U[:, :rank], s.mean().expand(rank) if rank else s, svd.Vh[:rank])
