"""What fine-tuning adds to a model: one update a weight, an adapter for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.linalg import SVD, Factors, sum_of_squares, svd_of_matrix, svd_of_product
from mergers.hashing import Digest
from mergers.parallel import map_modules


class Update(ABC):
    """What fine-tuning adds to one weight, of shape (out, in); or to a vector."""

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
    def blocks(self, rows: int) -> Iterator[Tensor]:
        """Yield the update in float32, ``rows`` rows at a time, so that the whole need never be held."""

    @abstractmethod
    def sample(self, step: int) -> Tensor:
        """Return every ``step``-th entry of every ``step``-th row, or of a vector, in float32."""

    @abstractmethod
    def factors(self) -> Factors:
        """Return (out, r) and (r, in) in float32, whose product is the update; a vector is one column."""

    @abstractmethod
    def svd(self) -> SVD:
        """Return the singular value decomposition in float64, of k = min(rank, out, in) triplets."""

    @abstractmethod
    def scaled(self, factor: float) -> "Update":
        """Return ``factor`` times this update."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the stored values by name; what `Adapter.content_hash` covers."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "Update":
        """Return the update with its tensors on ``device``."""

    def load(self) -> "Update":
        """Return the update with its tensors in memory; one that stays on disk until it is used reads them here."""
        return self

    def content_hash(self) -> str:
        """Return the sha256 of shapes and values (as float32), as 64 hexadecimal digits."""
        digest = Digest()
        for part, tensor in self.load().tensors().items():
            digest.add(part, tensor)
        return digest.hexdigest()

    def squared_norm(self) -> float:
        """Return the squared Frobenius norm, summed in float64."""
        B, A = self.factors()
        total = float(((B.T.double() @ B.double()) * (A.double() @ A.double().T)).sum())
        return max(total, 0.0)  # factors that cancel leave rounding of either sign


@dataclass(frozen=True, eq=False, repr=False)
class LowRankUpdate(Update):
    """delta = scale * B @ A.

    Attributes:
        A: (r, in), of any floating dtype.
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

    def __repr__(self) -> str:
        return f"LowRankUpdate({self.shape}, rank={self.rank}, scale={self.scale:g}, {self.A.dtype})"

    def factors(self) -> Factors:
        """Return (scale * B, A) in float32; their product is the update."""
        B = self.B.detach().float()
        return (B if self.scale == 1.0 else B * self.scale), self.A.detach().float()

    def dense(self) -> Tensor:
        """Return scale * B @ A, (out, in) float32."""
        B, A = self.factors()
        return B @ A

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """Yield the products of ``rows`` rows of B with A."""
        B, A = self.factors()
        for part in B.split(rows):
            yield part @ A

    def sample(self, step: int) -> Tensor:
        """Return the product of every ``step``-th row of B and column of A."""
        B, A = self.factors()
        return B[step // 2 :: step] @ A[:, step // 2 :: step]

    def svd(self) -> SVD:
        """Return the decomposition by way of the factors."""
        return svd_of_product(*self.factors())

    def scaled(self, factor: float) -> "LowRankUpdate":
        """Return ``factor`` times this update, on the same factors."""
        return LowRankUpdate(self.A, self.B, self.scale * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return A, B and the scale."""
        return {"A": self.A, "B": self.B, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    def to(self, device: torch.device | str) -> "LowRankUpdate":
        """Return the update with its factors on ``device``."""
        return LowRankUpdate(self.A.to(device), self.B.to(device), self.scale)


def fits_float32(update: Update) -> bool:
    """Return whether the entries of an update with finite factors are finite too: factors of 1e25 are, no product.

    Exact products of large factors are not formed; their norm, in float64, bounds all entries.
    """
    if not isinstance(update, LowRankUpdate) or 0 in (*update.A.shape, *update.B.shape):
        return True
    largest = torch.finfo(torch.float32).max
    B, A = update.factors()
    if update.rank * float(B.abs().max()) * float(A.abs().max()) < largest:
        return True
    return update.squared_norm() < largest**2


@dataclass(frozen=True, eq=False, repr=False)
class DenseUpdate(Update):
    """An update without low-rank structure.

    Attributes:
        delta: (out, in), or a vector.
    """

    delta: Tensor

    def __repr__(self) -> str:
        return f"DenseUpdate({self.shape}, {self.delta.dtype})"

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

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """Yield ``rows`` rows of ``delta`` at a time."""
        for part in self.delta.detach().split(rows):
            yield part.float()

    def sample(self, step: int) -> Tensor:
        """Return every ``step``-th entry of every ``step``-th row of ``delta``, or of a vector."""
        part = self.delta.detach()[::step]
        return (part[..., ::step] if part.ndim > 1 else part).float()

    def factors(self) -> Factors:
        """Return delta and the identity, with the smaller side between them."""
        delta = self._matrix()
        eye = torch.eye(min(delta.shape), device=delta.device)
        return (eye, delta) if delta.shape[0] <= delta.shape[1] else (delta, eye)

    def svd(self) -> SVD:
        """Return the decomposition of ``delta``."""
        return svd_of_matrix(self._matrix())

    def _matrix(self) -> Tensor:
        """Return ``delta`` in float32; a vector as one column."""
        delta = self.dense()
        return delta if delta.ndim == 2 else delta[:, None]

    def squared_norm(self) -> float:
        """Return the sum of squares of ``delta``."""
        return sum_of_squares(self.dense())

    def scaled(self, factor: float) -> "DenseUpdate":
        """Return ``factor * delta`` in float32."""
        return DenseUpdate(self.dense() * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return delta."""
        return {"delta": self.delta}

    def to(self, device: torch.device | str) -> "DenseUpdate":
        """Return the update with ``delta`` on ``device``."""
        return DenseUpdate(self.delta.to(device))


@dataclass(frozen=True, eq=False)
class ChangedUpdate(Update):
    """An update whose entries are changed as they are read, block by block.

    Attributes:
        source: What is changed.
        begin: Called once a pass over the entries; returns a function that is called with the consecutive
            blocks of rows of ``source`` in turn and returns them changed.
    """

    source: Update
    begin: Callable[[], Callable[[Tensor], Tensor]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``source``."""
        return self.source.shape

    @property
    def rank(self) -> int:
        """min(out, in): a change of entries leaves no low rank."""
        return min(self.shape) if len(self.shape) == 2 else 1

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """Yield the changed rows."""
        change = self.begin()
        for block in self.source.blocks(rows):
            yield change(block)

    def sample(self, step: int) -> Tensor:
        """Return changed entries like those of every ``step``-th row and column: random changes draw other numbers."""
        return self.begin()(self.source.sample(step))

    def dense(self) -> Tensor:
        """Return all changed rows."""
        return torch.cat(list(self.blocks(self.shape[0])))

    def factors(self) -> Factors:
        """Return the changed entries and the identity."""
        return DenseUpdate(self.dense()).factors()

    def svd(self) -> SVD:
        """Return the decomposition of the changed entries."""
        return DenseUpdate(self.dense()).svd()

    def squared_norm(self) -> float:
        """Return the sum of squares of the changed entries."""
        return DenseUpdate(self.dense()).squared_norm()

    def scaled(self, factor: float) -> "DenseUpdate":
        """Return ``factor`` times the changed entries."""
        return DenseUpdate(self.dense() * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return the changed entries as ``delta``."""
        return {"delta": self.dense()}

    def to(self, device: torch.device | str) -> "ChangedUpdate":
        """Return the same change of ``source`` on ``device``."""
        return ChangedUpdate(self.source.to(device), self.begin)


class Adapter(Mapping[str, Update]):
    """An ordered map from module name to update, with where it comes from.

    Args:
        updates: Module name (no PEFT prefix, such as ``encoder.layers.0.self_attn.q_proj``) to update.
        name: The task.
        base_model: Name of the model the updates belong to, or None where the files do not say.
        metadata: Further facts, as plain values: ``path``, ``dtype``, ``fan_in_fan_out``, ``selection``, ``kinds``, ...
        heads: What was trained whole beside the updates and belongs to this task alone, such as its classifier:
            name of the parameter to tensor.
    """

    def __init__(
        self,
        updates: Mapping[str, Update],
        name: str,
        base_model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._updates = dict(updates)
        self.heads: dict[str, Tensor] = dict(heads or {})
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
        modules = sorted(self)
        digest = Digest()
        for module, part in zip(modules, map_modules(lambda module: self[module].content_hash(), modules), strict=True):
            digest.add_text(f"{module}\x1f{part}")
        return digest.hexdigest()
