"""What a merge returns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mergers.adapters.common import common_facts
from mergers.models import apply_adapter
from mergers.output.folder import save_result
from mergers.output.summary import MergeSummary
from mergers.output.truncation import in_order, require_rank, truncate
from mergers.parallel import map_modules
from mergers.updates import Adapter, Update

if TYPE_CHECKING:
    from mergers.merger import Merger


class MergedAdapter(Adapter):
    """What `Merger.merge` returns: an adapter that can be saved and added to a model.

    Args:
        updates: As for `Adapter`.
        merger: How it was made.
        sources: Of what.
        for_task: The task whose own model this is; None for one model of all tasks.
    """

    def __init__(
        self, updates: Mapping[str, Update], merger: "Merger", sources: Sequence[Adapter], for_task: str | None = None
    ) -> None:
        super().__init__(updates, name="merged", **common_facts(sources))
        self.merger = merger
        self.sources = list(sources)
        self.for_task = for_task

    def save(self, path: str | Path, rank: int | None = None, dtype: torch.dtype | None = None) -> MergeSummary:
        """Write a PEFT folder, with a README.md that says what was merged, and each task's own head.

        Args:
            path: The folder. A merge that stands there is replaced once the new one is complete.
            rank: Keep the approximation of this rank in each module; by default the result is exact.
            dtype: Of the saved factors; by default the dtype that all merged adapters had, else float32.

        Returns:
            The errors of truncation and rounding, per module and in total, and more.

        Raises:
            SheetbendError: The updates are dense and no rank is given.
        """
        return save_result(self, path, rank, dtype)

    def truncated(self, rank: int) -> "MergedAdapter":
        """Return the approximation of rank ``rank`` in each module; see `truncate`. Vectors stay as they are."""
        require_rank(rank)
        modules = list(self)

        def truncated(module: str) -> Update:
            if len(self[module].shape) != 2:
                return self[module]
            return truncate(self[module], rank, in_order(self.sources, module)).update

        updates = map_modules(truncated, modules)
        return MergedAdapter(dict(zip(modules, updates, strict=True)), self.merger, self.sources, self.for_task)

    def apply(self, model: nn.Module) -> nn.Module:
        """Add the updates to the weights of ``model``, in place and in float32, and return it.

        Raises:
            SheetbendError: The model carries an adapter already, or lacks a module.
        """
        return apply_adapter(self, model)
