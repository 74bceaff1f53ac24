"""One weight whose merge is learned: its directions under masks, or whole updates under coefficients."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergers.functional.masked import Directions, masked_sum
from mergers.spaces.base import Encoded
from mergers.updates import DenseUpdate, LowRankUpdate, Update


class Part(ABC):
    """What is learned of one weight, and what it is learned on.

    Attributes:
        counts: directions of each task; zeros where there are none.
    """

    counts: tuple[int, ...]

    @abstractmethod
    def origin(self, base: Tensor) -> Tensor:
        """Return what the learned sum is added to, float32 in the shape of the update, given the base weight so."""

    def beyond_origin(self) -> "Part":
        """Return the part without what `origin` alone needs, which makes `weight` no other."""
        return self

    @abstractmethod
    def weight(self, origin: Tensor, logits: Tensor, coefficients: Tensor, temperature: float) -> Tensor:
        """Return the merged weight, differentiable in logits (K,) and coefficients (T,)."""

    @abstractmethod
    def update(self, logits: Tensor, coefficients: Tensor) -> Update:
        """Return what is added to the base weight in the end, low-rank where the tasks' updates are."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "Part":
        """Return the part on ``device``."""


@dataclass(frozen=True, eq=False)
class MaskedPart(Part):
    """A matrix with a mask on each direction of each task: origin + left @ (mean + sum) @ right.

    Attributes:
        directions: K of them in all, (K, p) and (K, q).
        counts: directions of each task.
        low_rank: whether the tasks' updates are.
        mean: of the updates in the coordinates of the directions, (p, q), where it is the origin.
        left: (out, p), or None for the identity.
        right: (q, in), or None for the identity.
    """

    directions: Directions
    counts: tuple[int, ...]
    low_rank: bool
    mean: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, encoded: Encoded, tasks: int, low_rank: bool) -> "MaskedPart":
        """Make the part of what `Decomposition.encode` returned."""
        own = encoded.coordinates[:tasks]
        counts = tuple(update.rank for update in own)
        directions = Directions(
            torch.cat([update.B.T for update in own]).contiguous(),
            torch.cat([update.A for update in own]).contiguous(),
            torch.arange(tasks).repeat_interleave(torch.tensor(counts)),
        )
        mean = encoded.coordinates[tasks].dense() if len(encoded.coordinates) > tasks else None
        return cls(directions, counts, low_rank, mean, encoded.left, encoded.right)

    @property
    def framed(self) -> bool:
        """Whether the directions are written in a frame smaller than the weight."""
        return self.left is not None or self.right is not None

    def origin(self, base: Tensor) -> Tensor:
        """Return the base weight, with the mean where it has the weight's own shape."""
        return base if self.mean is None or self.framed else base + self.mean.to(base.device)

    def beyond_origin(self) -> "MaskedPart":
        """Return the part without a mean in the weight's own shape."""
        return self if self.framed else replace(self, mean=None)

    def weight(self, origin: Tensor, logits: Tensor, coefficients: Tensor, temperature: float) -> Tensor:
        """Return the merged weight, (out, in)."""
        if not self.framed:
            return masked_sum(logits, coefficients, self.directions, temperature, origin)
        core = masked_sum(logits, coefficients, self.directions, temperature, self.mean)
        with torch.autocast(core.device.type, enabled=False):
            left = core if self.left is None else self.left @ core
            return origin + left if self.right is None else torch.addmm(origin, left, self.right)

    def update(self, logits: Tensor, coefficients: Tensor) -> Update:
        """Return the sum of the directions whose mask is on, and of the mean, factored if all tasks' updates are."""
        B, A, tasks = self.directions
        on = logits > 0
        total: Update = LowRankUpdate(A=A[on], B=(B[on] * coefficients[tasks[on], None]).T)
        if self.mean is not None or (self.framed and total.rank > min(total.shape)):
            total = DenseUpdate(total.dense() if self.mean is None else total.dense() + self.mean)
        total = Encoded([], self.left, self.right).decode(total)
        if self.low_rank == isinstance(total, LowRankUpdate):
            return total
        B, A = total.factors()
        return LowRankUpdate(A=A, B=B) if self.low_rank else DenseUpdate(total.dense())

    def to(self, device: torch.device | str) -> "MaskedPart":
        """Return the part on ``device``."""
        moved = {
            name: None if getattr(self, name) is None else getattr(self, name).to(device)
            for name in ("directions", "mean", "left", "right")
        }
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class WholePart(Part):
    """A vector, or a weight whose directions are left alone: origin + sum_i coefficients_i delta_i.

    Attributes:
        deltas: (T, *shape) float32; minus their mean where that is the origin.
        mean: of the updates, in their shape, where it is the origin.
    """

    deltas: Tensor
    mean: Tensor | None = None

    @classmethod
    def of(cls, updates: Sequence[Update], around_mean: bool) -> "WholePart":
        """Make the part of the tasks' updates."""
        deltas = torch.stack([update.dense() for update in updates])
        mean = deltas.mean(0) if around_mean else None
        return cls(deltas if mean is None else deltas - mean, mean)

    @property
    def counts(self) -> tuple[int, ...]:
        """Zeros: it has no directions."""
        return (0,) * len(self.deltas)

    def origin(self, base: Tensor) -> Tensor:
        """Return the base weight, or that of the mean."""
        return base if self.mean is None else base + self.mean.to(base.device)

    def beyond_origin(self) -> "WholePart":
        """Return the part without the mean."""
        return WholePart(self.deltas)

    def weight(self, origin: Tensor, logits: Tensor, coefficients: Tensor, temperature: float) -> Tensor:
        """Return the merged weight."""
        with torch.autocast(origin.device.type, enabled=False):
            return origin + torch.tensordot(coefficients, self.deltas, 1)

    def update(self, logits: Tensor, coefficients: Tensor) -> Update:
        """Return the weighted sum."""
        return DenseUpdate(self.weight(self.origin(torch.zeros_like(self.deltas[0])), logits, coefficients, 1.0))

    def to(self, device: torch.device | str) -> "WholePart":
        """Return the part on ``device``."""
        return WholePart(self.deltas.to(device), None if self.mean is None else self.mean.to(device))


@dataclass(frozen=True, eq=False)
class OriginPart(Part):
    """A weight that stays at the origin, with nothing to learn.

    Attributes:
        mean: of the updates.
        tasks: how many there are.
    """

    mean: Update
    tasks: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Zeros: it has no directions."""
        return (0,) * self.tasks

    def origin(self, base: Tensor) -> Tensor:
        """Return the base weight with the mean."""
        return base + self.mean.dense().to(base.device)

    def weight(self, origin: Tensor, logits: Tensor, coefficients: Tensor, temperature: float) -> Tensor:
        """Return ``origin``."""
        return origin

    def update(self, logits: Tensor, coefficients: Tensor) -> Update:
        """Return the mean."""
        return self.mean

    def to(self, device: torch.device | str) -> "OriginPart":
        """Return the part itself: the mean is read once, for the origin."""
        return self
