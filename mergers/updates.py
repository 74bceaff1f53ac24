"""What fine-tuning adds to a model: one update a weight, an adapter for all of them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergers.errors import SheetbendError


class Update(ABC):
    """What fine-tuning adds to one weight, of shape (out, in)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The largest rank the update can have."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the update as one float32 tensor of `shape`."""

    @abstractmethod
    def scaled(self, factor: float) -> "Update":
        """Return ``factor`` times this update."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the stored values by name; what `Adapter.content_hash` covers."""


@dataclass(frozen=True, eq=False)
class LowRankUpdate(Update):
    """delta = scale * B @ A.

    Attributes:
        A: (r, in).
        B: (out, r).
        scale: The factor, alpha / r for plain LoRA.

    >>> LowRankUpdate(A=torch.ones(1, 3), B=torch.ones(2, 1), scale=2.0).dense()
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise SheetbendError(
                f"low-rank factors A {tuple(self.A.shape)} and B {tuple(self.B.shape)} do not fit together; "
                "A is (r, in) and B is (out, r)"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return (self.B.shape[0], self.A.shape[1])

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.A.shape[0]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (scale * B, A) in float32; their product is the update."""
        B = self.B.detach().float()
        return (B if self.scale == 1.0 else B * self.scale), self.A.detach().float()

    def dense(self) -> Tensor:
        """Return scale * B @ A, (out, in) float32."""
        B, A = self.factors()
        return B @ A

    def scaled(self, factor: float) -> "LowRankUpdate":
        """Return ``factor`` times this update, on the same factors."""
        return LowRankUpdate(self.A, self.B, self.scale * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return A, B and the scale."""
        return {"A": self.A, "B": self.B, "scale": torch.tensor(self.scale, dtype=torch.float64)}


@dataclass(frozen=True, eq=False)
class DenseUpdate(Update):
    """An update without low-rank structure.

    Attributes:
        delta: (out, in), or a vector.
    """

    delta: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``delta``."""
        return tuple(self.delta.shape)

    @property
    def rank(self) -> int:
        """min(out, in); 1 for a vector."""
        return min(self.shape) if len(self.shape) == 2 else 1

    def dense(self) -> Tensor:
        """Return ``delta`` in float32."""
        return self.delta.detach().float()

    def scaled(self, factor: float) -> "DenseUpdate":
        """Return ``factor * delta`` in float32."""
        return DenseUpdate(self.dense() * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return delta."""
        return {"delta": self.delta}


class Adapter(Mapping[str, Update]):
    """An ordered map from module name to update, with where it comes from.

    Args:
        updates: Module name (no PEFT prefix, such as ``encoder.layers.0.self_attn.q_proj``) to update.
        name: The task.
        base_model: Name of the model the updates belong to, or None where the files do not say.
        metadata: Further facts, as plain values: ``path``, ``dtype``, ``fan_in_fan_out``, PEFT's ``config``.
    """

    def __init__(
        self,
        updates: Mapping[str, Update],
        name: str,
        base_model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._updates = dict(updates)
        self.name = name
        self.base_model = base_model
        self.metadata: dict[str, Any] = dict(metadata or {})

    def __getitem__(self, module: str) -> Update:
        return self._updates[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} modules, base_model={self.base_model!r})"

    @property
    def label(self) -> str:
        """How messages call the adapter: its path where it has one, else its name."""
        return str(self.metadata.get("path", self.name))

    def dense(self) -> dict[str, Tensor]:
        """Return every update as one float32 tensor, by module name."""
        return {module: update.dense() for module, update in self.items()}

    def content_hash(self) -> str:
        """Return the sha256 of module names, shapes and values (as float32), as 64 hexadecimal digits.

        Neither the order of the modules nor the dtype or layout of the files they came from changes it.
        """
        digest = hashlib.sha256()
        for module in sorted(self):
            for part, tensor in self[module].tensors().items():
                values = tensor.detach().to("cpu", torch.float32).contiguous()
                digest.update(f"{module}\x1f{part}\x1f{tuple(values.shape)}\x1f".encode())
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()
