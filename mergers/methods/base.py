"""What a method is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mergers.updates import DenseUpdate, LowRankUpdate, Update

Result = TypeVar("Result")

#: Calls a function on the coordinates (one update a task) of every module, and returns the results in order,
#: lazily, so that a sum of them holds few at a time.
EachModule = Callable[[Callable[[Sequence[Update]], Result]], Iterable[Result]]

# Entries of one task that are worked on at a time, so that the work stays in the processor's cache.
BLOCK_ENTRIES = 1 << 16


class Method(ABC):
    """What merges the coordinates of T tasks into one."""

    #: Whether it needs singular values or norms, so that the coordinates must have those of the update.
    spectral: ClassVar[bool] = False

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

    @abstractmethod
    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any) -> Update:
        """Merge one module.

        Args:
            coordinates: One a task, all of one shape.
            coefficients: One a task.
            survey: What `survey` returned.
        """


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
        merged, start = None, 0
        for values in task_blocks(coordinates):
            block = self.merge_entries(values, coefficients, survey)
            if merged is None:
                merged = block.new_empty(coordinates[0].shape)
            merged[start : start + len(block)] = block
            start += len(block)
        return DenseUpdate(torch.zeros(coordinates[0].shape) if merged is None else merged)

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


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Return sum_i w_i update_i, low-rank if all updates are."""
    weighted = [update.scaled(weight) for update, weight in zip(updates, weights, strict=True)]
    if all(isinstance(update, LowRankUpdate) for update in weighted):
        factors = [update.factors() for update in weighted]
        return LowRankUpdate(A=torch.cat([A for _, A in factors]), B=torch.cat([B for B, _ in factors], dim=1))
    total = weighted[0].dense().clone()
    for update in weighted[1:]:
        total += update.dense()
    return DenseUpdate(total)
