"""Descent on functions whose gradient is known."""

from collections.abc import Callable

import torch
from torch import Tensor


def adam(
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return where Adam's steps lead.

    Paper: Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015 (arXiv 1412.6980).

    Args:
        start: Any shape; left as it is.
        gradient: Returns a new tensor, which is overwritten.
        steps: How many.
        lr: Length of a step, about.
        betas: Decay of the means of the gradient and of its square.
        eps: Added to the root of the latter.

    >>> adam(torch.tensor([4.0]), lambda x: 2 * x, steps=2, lr=1.0).round()
    tensor([2.])
    """
    value = start.clone()
    mean, square = torch.zeros_like(value), torch.zeros_like(value)
    for step in range(1, steps + 1):
        slope = gradient(value)
        mean.lerp_(slope, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(slope, slope, value=1 - betas[1])
        correction = (1 - betas[1] ** step) ** 0.5
        scale = torch.sqrt(square, out=slope).div_(correction).add_(eps)
        value.addcdiv_(mean, scale, value=-lr / (1 - betas[0] ** step))
    return value
