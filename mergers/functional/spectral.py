"""Work on singular values."""

import torch
from torch import Tensor

from mergers.functional.linalg import SVD


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
