"""What a method is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from mergers.functional.linalg import SVD, numerical_rank
from mergers.updates import DenseUpdate, LowRankUpdate, Update

Result = TypeVar("Result")

#: Calls a function on the coordinates (one update a task) of every module, and returns the results in order,
#: lazily, so that a sum of them holds few at a time.
EachModule = Callable[[Callable[[Sequence[Update]], Result]], Iterable[Result]]

# Singular values up to this fraction of the largest count as zero: rounding to float32 leaves about 1e-7.
CUTOFF = 1e-6

# Entries of one task that are worked on at a time, so that the work stays in the processor's cache.
BLOCK_ENTRIES = 1 << 17


class Method(ABC):
    """What merges the coordinates of T tasks into one."""

    #: Whether it needs singular values or norms, so that the coordinates must have those of the update.
    needs_norms: ClassVar[bool] = False

    #: Whether `task_specific` makes a model for each task.
    has_task_models: ClassVar[bool] = False

    @property
    def entrywise(self) -> bool:
        """Whether it acts on entries, so that its result has no low rank."""
        return False

    def survey(self, each_module: EachModule) -> Any:
        """Look at all modules before the first is merged, and return what `merge` needs to know of them.

        Args:
            each_module: May be called as often as needed; each call makes the coordinates anew, a module at a
                time, and its results must be consumed before the next call.
        """
        return None

    def working_tensors(self, tasks: int) -> int:
        """Return how many float32 tensors of the coordinates' shape are held, where these are dense; for estimates."""
        return 1

    @abstractmethod
    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any) -> Update:
        """Merge one module.

        Args:
            coordinates: One a task, all of one shape.
            coefficients: One a task.
            survey: What `survey` returned.
        """

    def task_specific(
        self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any, task: int
    ) -> Update:
        """Merge one module for one of the tasks, as `merge` does for all of them.

        Args:
            coordinates: As for `merge`.
            coefficients: As for `merge`.
            survey: As for `merge`.
            task: Index of the task.
        """
        raise NotImplementedError(f"{type(self).__name__} has no task models")


class LinearMethod(Method):
    """A weighted sum. It stays factored: [w_1 B_1 | ... | w_T B_T] times the stacked A_i."""

    @abstractmethod
    def weights(self, coefficients: Sequence[float], survey: Any) -> list[float]:
        """Return the weight of each task."""

    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any = None) -> Update:
        """Return the weighted sum, low-rank if all coordinates are."""
        return weighted_sum(coordinates, self.weights(coefficients, survey))


class SpectralMethod(Method):
    """A method on matrices, by their singular value decompositions; vectors, which have none, are averaged."""

    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any = None) -> Update:
        """Return the merged matrix, or the weighted mean of vectors."""
        if len(coordinates[0].shape) == 1:
            return weighted_sum(coordinates, [coefficient / len(coefficients) for coefficient in coefficients])
        return self.merge_matrices(coordinates, coefficients)

    def working_tensors(self, tasks: int) -> int:
        """Return three float64 ones a task: U, V and what is decomposed."""
        return 2 * 3 * tasks

    @abstractmethod
    def merge_matrices(self, coordinates: Sequence[Update], coefficients: Sequence[float]) -> Update:
        """Merge the coordinates of one weight matrix, low-rank where they are."""


class EntrywiseMethod(Method):
    """A method that merges each entry for itself, a block of rows at a time."""

    @property
    def entrywise(self) -> bool:
        """True: the result has no low rank."""
        return True

    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any = None) -> Update:
        """Return the merged entries."""
        survey = self.survey_module(coordinates, survey)
        return merge_blocks(coordinates, lambda values: self.merge_entries(values, coefficients, survey))

    def survey_module(self, coordinates: Sequence[Update], survey: Any) -> Any:
        """Look at one module before its entries are merged; return what takes the place of ``survey`` there."""
        return survey

    @abstractmethod
    def merge_entries(self, values: Sequence[Tensor], coefficients: Sequence[float], survey: Any) -> Tensor:
        """Merge blocks of entries, one a task, all of one shape, float32."""


def blocks_of(update: Update) -> Iterator[Tensor]:
    """Yield the entries of ``update`` in blocks of rows, the same ones in each pass."""
    columns = math.prod(update.shape[1:])
    return update.blocks(max(1, BLOCK_ENTRIES // max(1, columns)))


def task_blocks(coordinates: Sequence[Update]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the entries of all tasks together, one block of rows a task."""
    return zip(*map(blocks_of, coordinates), strict=True)


def merge_blocks(coordinates: Sequence[Update], merge: Callable[[Sequence[Tensor]], Tensor]) -> DenseUpdate:
    """Return the update whose blocks are made of the blocks of all tasks; no task's entries are held together."""
    merged, start = None, 0
    for values in task_blocks(coordinates):
        block = merge(values)
        if merged is None:
            merged = block.new_empty(coordinates[0].shape)
        merged[start : start + len(block)] = block
        start += len(block)
    return DenseUpdate(torch.zeros(coordinates[0].shape) if merged is None else merged)


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Return sum_i w_i update_i, low-rank if all updates are."""
    if are_low_rank(updates):
        factors = [update.scaled(weight).factors() for update, weight in zip(updates, weights, strict=True)]
        return LowRankUpdate(A=torch.cat([A for _, A in factors]), B=torch.cat([B for B, _ in factors], dim=1))
    return merge_blocks(updates, lambda values: weighted_entries(values, weights))


def weighted_entries(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of blocks."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total


def are_low_rank(updates: Sequence[Update]) -> bool:
    """Return whether all updates are low-rank, so that what is made of them should be."""
    return all(isinstance(update, LowRankUpdate) for update in updates)


def support(update: Update) -> SVD:
    """Return the singular triplets of an update whose singular value is not zero to rounding, float64."""
    U, s, Vh = update.svd()
    rank = numerical_rank(s, CUTOFF)
    return SVD(U[:, :rank], s[:rank], Vh[:rank])


class CommonFrame(NamedTuple):
    """Updates of one weight in orthonormal bases of all their columns and rows: update_i = left @ cores_i @ right.

    Attributes:
        left: (out, p) float64, or None for the identity.
        cores: One a task, (p, q) float64.
        right: (q, in) float64, or None for the identity.
    """

    left: Tensor | None
    cores: list[Tensor]
    right: Tensor | None


def common_frame(updates: Sequence[Update]) -> CommonFrame:
    """Write matrices in common bases, of p = min(out, R) and q = min(in, R) vectors, where R is the sum of the ranks.

    Singular values stay as they are, and a matrix of (R, R) is cheap to decompose.
    """
    rows, columns = updates[0].shape
    rank = sum(update.rank for update in updates)
    if rank >= max(rows, columns) and not are_low_rank(updates):
        return CommonFrame(None, [update.dense().double() for update in updates], None)
    factors = [(B.double(), A.double()) for B, A in (update.factors() for update in updates)]
    left = torch.linalg.qr(torch.cat([B for B, _ in factors], dim=1)).Q if rank < rows else None
    right = torch.linalg.qr(torch.cat([A for _, A in factors]).T).Q.T if rank < columns else None
    cores = [(B if left is None else left.T @ B) @ (A if right is None else A @ right.T) for B, A in factors]
    return CommonFrame(left, cores, right)


def from_core(core: Tensor, frame: CommonFrame, coordinates: Sequence[Update]) -> Update:
    """Return left @ core @ right, as an update like those that ``frame`` was made of."""
    left, right = frame.left, frame.right
    if not are_low_rank(coordinates):
        core = core if left is None else left @ core
        return DenseUpdate((core if right is None else core @ right).float())
    rows, columns = core.shape
    if rows <= columns:
        B = torch.eye(rows, dtype=core.dtype, device=core.device) if left is None else left
        return from_factors(B, core if right is None else core @ right, coordinates)
    A = torch.eye(columns, dtype=core.dtype, device=core.device) if right is None else right
    return from_factors(core if left is None else left @ core, A, coordinates)


def from_factors(B: Tensor, A: Tensor, coordinates: Sequence[Update]) -> Update:
    """Return B @ A in float32: factored if all of ``coordinates``, of which it was made, are."""
    product = LowRankUpdate(A=A.float(), B=B.float())
    return product if are_low_rank(coordinates) else DenseUpdate(product.dense())
