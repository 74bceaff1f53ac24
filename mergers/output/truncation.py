"""The best approximation of an update by one of low rank, and what it costs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.linalg import sum_of_squares, truncated_svd
from mergers.updates import Adapter, LowRankUpdate, Update

# Below this fraction of the whole, a difference of squared norms is mostly rounding of the float32 singular values.
_CANCELLED = 1e-3
_ROWS = 1024


class Truncated(NamedTuple):
    """An update of rank k at most, with the squared Frobenius norms of what was left out and of the whole."""

    update: LowRankUpdate
    squared_error: float
    squared_norm: float


def require_rank(rank: int | None) -> None:
    """Raise unless ``rank`` is None or a number that a LoRA adapter can have."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise SheetbendError(f"rank is {rank!r}; give a whole number from 1 on")


def in_order(adapters: Sequence[Adapter], module: str) -> list[Update]:
    """Return the updates of one module by the names of the tasks: the iteration starts with them in this order."""
    return [adapter[module] for adapter in sorted(adapters, key=lambda adapter: adapter.name)]


def truncate(update: Update, rank: int, sources: Sequence[Update] = ()) -> Truncated:
    """Return the approximation of ``update`` by its ``rank`` largest singular values.

    A low-rank update is decomposed exactly, by its factors; it stays as it is where its rank is no larger. A dense one
    is projected on its leading directions, found by iteration; the error is that of this projection.
    The singular values are shared evenly between both factors, which keeps 16-bit ones in range.

    Args:
        update: A matrix.
        rank: From 1 on.
        sources: What it was merged from; the span of low-rank ones is where the iteration starts.
    """
    delta = None
    if isinstance(update, LowRankUpdate):
        if update.rank <= rank:
            return Truncated(update, 0.0, update.squared_norm())
        U, s, Vh = update.svd()
        squared_norm, squared_error = float(s.square().sum()), float(s[rank:].square().sum())
        U, s, Vh = U[:, :rank], s[:rank], Vh[:rank]
    else:
        delta = update.dense()
        known = [source.factors()[0].to(delta.device) for source in sources if isinstance(source, LowRankUpdate)]
        U, s, Vh = truncated_svd(delta, rank, torch.cat(known, dim=1) if known else None)
        squared_norm = sum_of_squares(delta)
        squared_error = squared_norm - float(s.double().square().sum())  # a projection: Pythagoras holds
    root = s.sqrt()
    kept = LowRankUpdate(A=(root[:, None] * Vh).float(), B=(U * root).float())
    if delta is not None and squared_error < _CANCELLED * squared_norm:
        squared_error = _squared_distance(delta, kept)
    return Truncated(kept, squared_error, squared_norm)


def _squared_distance(delta: Tensor, kept: Update) -> float:
    """Return the squared Frobenius norm of the difference, a block of rows at a time."""
    pairs = zip(delta.split(_ROWS), kept.blocks(_ROWS), strict=True)
    return sum(sum_of_squares(whole - part) for whole, part in pairs)


def rounding_error(update: LowRankUpdate, dtype: torch.dtype) -> float:
    """Return the squared Frobenius norm of what casting both factors to ``dtype`` changes in their product."""
    B, A = (factor.double() for factor in update.factors())
    B_cast, A_cast = B.to(dtype).double(), A.to(dtype).double()
    # B'A' - BA = (B' - B) A' + B (A' - A), without cancellation
    change = torch.cat([B_cast - B, B], dim=1), torch.cat([A_cast, A_cast - A])
    return max(float(((change[0].T @ change[0]) * (change[1] @ change[1].T)).sum()), 0.0)
