"""Sums of directions under learned masks and coefficients, differentiated without a product a task."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# How many directions are worked on at a time: enough for the processor, little beside a weight matrix.
_ROWS = 1024


class Directions(NamedTuple):
    """Rank-one matrices of several tasks: direction k is the outer product of B[k] and A[k].

    Attributes:
        B: (K, p); each row carries the singular value of its direction.
        A: (K, q).
        tasks: (K,) int64, whose each direction is.
    """

    B: Tensor
    A: Tensor
    tasks: Tensor

    def to(self, device: torch.device | str) -> "Directions":
        """Return the directions on ``device``."""
        return Directions(*(tensor.to(device) for tensor in self))


def masked_sum(
    logits: Tensor, coefficients: Tensor, directions: Directions, temperature: float, origin: Tensor | None = None
) -> Tensor:
    """Return origin + sum_k coefficients[tasks[k]] * 1[logits[k] > 0] * B[k] A[k]^T, of shape (p, q).

    The gradient passes the mask straight through, as if each direction were multiplied by
    p + stopgrad(1[p > 1/2] - p) with p = sigmoid(logits / temperature). Only directions whose mask is on are summed;
    the gradient, which needs the others too, is a bilinear form per direction. No task's own product is formed or kept.

    Paper: Lee et al., AdaRank: Adaptive Rank Pruning for Enhanced Model Merging (arXiv 2503.22178).

    Args:
        logits: (K,), the mask of each direction.
        coefficients: (T,), one a task.
        directions: K of them, kept by reference for the backward pass; they get no gradient.
        temperature: Of the sigmoid; it scales the gradient of the logits alone.
        origin: (p, q), without gradient; zeros by default.

    >>> directions = Directions(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
    >>> masked_sum(torch.tensor([0.1, -0.1]), torch.tensor([0.3, 0.3]), directions, temperature=10.0)
    tensor([[0.3000, 0.0000],
            [0.0000, 0.0000]])
    """
    return _MaskedSum.apply(logits, coefficients, directions, temperature, origin)


class _MaskedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        coefficients: Tensor,
        directions: Directions,
        temperature: float,
        origin: Tensor | None,
    ) -> Tensor:
        B, A, tasks = directions
        ctx.save_for_backward(logits, coefficients)
        ctx.directions, ctx.temperature = directions, temperature
        weights = coefficients[tasks]
        shape = (B.shape[1], A.shape[1])
        total = A.new_zeros(shape) if origin is None else origin.clone(memory_format=torch.contiguous_format)
        with torch.autocast(A.device.type, enabled=False):
            for rows in _chunks(logits > 0):
                b, a, weight = B[rows], A[rows], weights[rows, None]
                total.addmm_(*((b * weight).T, a) if shape[0] <= shape[1] else (b.T, a * weight))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, coefficients = ctx.saved_tensors
        B, A, tasks = ctx.directions
        learns_masks, learns_coefficients = ctx.needs_input_grad[:2]
        on = logits > 0
        gains = torch.zeros_like(logits)  # by how much the loss rises with each direction
        with torch.autocast(A.device.type, enabled=False):
            for rows in _chunks(torch.ones_like(on) if learns_masks else on):
                b, a = B[rows], A[rows]
                gains[rows] = ((b @ grad) * a).sum(1) if A.shape[1] <= B.shape[1] else ((a @ grad.T) * b).sum(1)
        for_logits = for_coefficients = None
        if learns_masks:
            p = torch.sigmoid(logits / ctx.temperature)
            for_logits = gains * coefficients[tasks] * p * (1 - p) / ctx.temperature
        if learns_coefficients:
            for_coefficients = torch.zeros_like(coefficients).index_add_(0, tasks, gains * on)
        return for_logits, for_coefficients, None, None, None


def _chunks(mask: Tensor) -> Iterator[slice | Tensor]:
    """Yield the places where ``mask`` is true, some at a time; as slices, which copy nothing, where all are."""
    places = mask.nonzero().squeeze(1)
    if len(places) == len(mask):
        yield from (slice(start, start + _ROWS) for start in range(0, len(mask), _ROWS))
    else:
        yield from places.split(_ROWS)
