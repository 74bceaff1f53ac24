"""What a method is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from mergers.updates import DenseUpdate, LowRankUpdate, Update

Result = TypeVar("Result")

#: Calls a function on the coordinates (one update a task) of every module, and returns the results in order,
#: lazily, so that a sum of them holds few at a time.
EachModule = Callable[[Callable[[Sequence[Update]], Result]], Iterable[Result]]


class Method(ABC):
    """What merges the coordinates of T tasks into one."""

    #: Whether it acts on entries, so that its result has no low rank.
    entrywise: ClassVar[bool] = False

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
    def weights(self, coefficients: Sequence[float]) -> list[float]:
        """Return the weight of each task."""

    def merge(self, coordinates: Sequence[Update], coefficients: Sequence[float], survey: Any = None) -> Update:
        """Return the weighted sum, low-rank if all coordinates are."""
        weighted = [c.scaled(w) for c, w in zip(coordinates, self.weights(coefficients), strict=True)]
        if all(isinstance(update, LowRankUpdate) for update in weighted):
            factors = [update.factors() for update in weighted]
            return LowRankUpdate(A=torch.cat([A for _, A in factors]), B=torch.cat([B for B, _ in factors], dim=1))
        total = weighted[0].dense().clone()
        for update in weighted[1:]:
            total += update.dense()
        return DenseUpdate(total)
