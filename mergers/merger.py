"""From adapters to one adapter."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mergers.adapters.checks import check_same_base
from mergers.adapters.common import common_facts
from mergers.errors import SheetbendError, did_you_mean
from mergers.finishes.base import Finish
from mergers.functional.linalg import all_finite
from mergers.methods.base import Method
from mergers.models import apply_adapter
from mergers.output.folder import save_result
from mergers.output.summary import MergeSummary
from mergers.output.truncation import require_rank, truncate
from mergers.parallel import map_modules
from mergers.registry import resolve
from mergers.spaces.base import Encoded, Space
from mergers.transforms.base import Transform
from mergers.updates import Adapter, Update

#: Writes the updates of one weight matrix in a space.
Encode = Callable[[Sequence[Update]], Encoded]

#: Called as work goes on: what is being done, how many modules are done, of how many.
Progress = Callable[[str, int, int], None]


class MergedAdapter(Adapter):
    """What `Merger.merge` returns: an adapter that can be saved and added to a model.

    Args:
        updates: As for `Adapter`.
        merger: How it was made.
        sources: Of what.
    """

    def __init__(self, updates: Mapping[str, Update], merger: "Merger", sources: Sequence[Adapter]) -> None:
        super().__init__(updates, name="merged", **common_facts(sources))
        self.merger = merger
        self.sources = list(sources)

    def save(self, path: str | Path, rank: int | None = None, dtype: torch.dtype | None = None) -> MergeSummary:
        """Write a PEFT folder, with a README.md that says what was merged, and each task's own head.

        Args:
            path: The folder. A merge that stands there is replaced once the new one is complete.
            rank: Keep the best approximation of this rank in each module; by default the result is exact.
            dtype: Of the saved factors; by default the dtype that all merged adapters had, else float32.

        Returns:
            The errors of truncation and rounding, per module and in total, and more.

        Raises:
            SheetbendError: The updates are dense and no rank is given.
        """
        return save_result(self, path, rank, dtype)

    def truncated(self, rank: int) -> "MergedAdapter":
        """Return the best approximation of rank ``rank`` in each module."""
        require_rank(rank)
        modules = list(self)
        updates = map_modules(lambda module: truncate(self[module], rank).update, modules)
        return MergedAdapter(dict(zip(modules, updates, strict=True)), self.merger, self.sources)

    def apply(self, model: nn.Module) -> nn.Module:
        """Add the updates to the weights of ``model``, in place and in float32, and return it.

        Raises:
            SheetbendError: The model carries an adapter already, or lacks a module.
        """
        return apply_adapter(self, model)


@dataclass(frozen=True)
class Merger:
    """Merges adapters: transforms each task's coordinates in a space, merges them by a method, decodes.

    Attributes:
        space: Basis in which updates are merged: a Space, or its name with its defaults.
        method: What merges the coordinates of all tasks: a Method, or its name with its defaults.
        transforms: What changes each task's coordinates before, in this order.
        coefficients: Weights of the tasks: one number for all, one a task in their order, or a map
            from task name to number.
        finish: What changes the merged coordinates after, or None.
    """

    space: Space | str = "full"
    method: Method | str = "mean"
    transforms: list[Transform | str] = field(default_factory=list)
    coefficients: float | list[float] | dict[str, float] = 1.0
    finish: Finish | str | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "space", resolve(self.space, "mergers.spaces", Space))
        set_field(self, "method", resolve(self.method, "mergers.methods", Method))
        if not isinstance(self.transforms, list | tuple):
            raise SheetbendError(f"transforms is {self.transforms!r}; give a list, such as [{self.transforms!r}]")
        transforms = [resolve(transform, "mergers.transforms", Transform) for transform in self.transforms]
        set_field(self, "transforms", transforms)
        if self.finish is not None:
            set_field(self, "finish", resolve(self.finish, "mergers.finishes", Finish))
        for step in self.steps:
            if (isinstance(step, Finish) or step.spectral) and not self.space.keeps_singular_values:
                raise SheetbendError(
                    f"{step} acts on singular values or norms, which the coordinates in {self.space} do not have; "
                    "use KnOTS(scale_by_singular_values=True), or another space"
                )
        coefficients = self.coefficients
        if isinstance(coefficients, dict):
            values = list(coefficients.values())
        else:
            values = list(coefficients) if isinstance(coefficients, list | tuple) else [coefficients]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise SheetbendError(f"coefficients holds {value!r}; give finite numbers")

    def __str__(self) -> str:
        """Say in one line what is done, with which settings.

        >>> from mergers import Star, Ties
        >>> str(Merger("knots", Ties(density=0.3), [Star(eta=40)], coefficients=0.6))
        'Star(eta=40), then Ties(density=0.3), in KnOTS space, coefficient 0.6'
        """
        steps = ", then ".join(map(_brief, self.steps))
        scaled = "" if self.coefficients == 1.0 else f", coefficient {self.coefficients}"
        return f"{steps}, in {_brief(self.space)} space{scaled}"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Merger":
        """Return the merge of that name in `mergers.PRESETS`.

        Args:
            name: Such as ``knots-ties``.
            **changes: Fields that differ from the preset's.

        Raises:
            SheetbendError: There is no preset of that name.
        """
        from mergers.presets import preset  # which is made of Mergers

        return preset(name, **changes)

    @property
    def steps(self) -> list[Transform | Method | Finish]:
        """What is done to the coordinates, in this order."""
        return [*self.transforms, self.method, *([self.finish] if self.finish else [])]

    @property
    def _entrywise(self) -> list[Transform | Method]:
        """The steps that leave no low rank."""
        return [step for step in (*self.transforms, self.method) if step.entrywise]

    @property
    def low_rank(self) -> bool:
        """Whether low-rank adapters give a low-rank result, which can be saved as an adapter without loss."""
        return self.space.low_rank(dense_coordinates=bool(self._entrywise))

    def require_low_rank(self) -> None:
        """Raise if the result cannot be saved as an adapter: to be called before work that ends in saving.

        Raises:
            SheetbendError: It names the way out.
        """
        if not self.low_rank:
            raise SheetbendError(
                f"{type(self._entrywise[0]).__name__} in space {type(self.space).__name__} gives dense updates, which "
                "no LoRA adapter holds exactly; give rank=, to keep the best approximation of that rank, or add the "
                "result to a full model"
            )

    def task_coefficients(self, tasks: Sequence[str]) -> list[float]:
        """Return one coefficient a task, in the order of ``tasks``.

        Raises:
            SheetbendError: ``coefficients`` names other tasks, or has another length.
        """
        coefficients = self.coefficients
        if isinstance(coefficients, dict):
            for name in coefficients:
                if name not in tasks:
                    close = did_you_mean(name, list(tasks))
                    raise SheetbendError(
                        f"coefficients names the unknown task {name!r}; known tasks: {', '.join(tasks)}{close}"
                    )
            missing = [task for task in tasks if task not in coefficients]
            if missing:
                raise SheetbendError(f"coefficients has no number for task {missing[0]!r}; give one for every task")
            return [float(coefficients[task]) for task in tasks]
        if isinstance(coefficients, list | tuple):
            if len(coefficients) != len(tasks):
                raise SheetbendError(
                    f"coefficients has {len(coefficients)} numbers for {len(tasks)} tasks "
                    f"({', '.join(tasks)}); give one number, or one a task"
                )
            return [float(coefficient) for coefficient in coefficients]
        return [float(coefficients)] * len(tasks)

    def merge(
        self,
        adapters: Sequence[Adapter],
        same_base: bool = False,
        encode: Encode | None = None,
        progress: Progress | None = None,
        for_task: str | None = None,
    ) -> MergedAdapter:
        """Merge adapters of one base model.

        Args:
            adapters: One a task, with distinct names; any ranks and floating dtypes.
            same_base: Accept different names of the base model.
            encode: Takes the place of ``space.encode``, such as `AlignmentCache.encode`.
            progress: Called as the work goes on.
            for_task: Name of the task whose own model is made, by a method that has one (TallMasks); by default
                one model is made for all tasks.

        Raises:
            SheetbendError: The adapters do not fit together, or the coefficients or ``for_task`` do not fit them.
        """
        adapters = list(adapters)
        updates = dict(self.stream(adapters, same_base, encode, progress, for_task=for_task))
        return MergedAdapter(updates, self, adapters)

    def check(self, adapters: Sequence[Adapter], same_base: bool = False) -> None:
        """Raise `SheetbendError` unless ``adapters`` fit together and the coefficients fit them."""
        check_same_base(adapters, same_base=same_base)
        self.task_coefficients([adapter.name for adapter in adapters])

    def stream(
        self,
        adapters: Sequence[Adapter],
        same_base: bool = False,
        encode: Encode | None = None,
        progress: Progress | None = None,
        then: Callable[[str, Update], Any] = lambda module, update: update,
        for_task: str | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Merge adapters of one base model, yielding each module as soon as it is merged.

        What is held are the adapters, their alignment (about as large), and the few modules that are being worked
        on.

        Args:
            adapters: As for `merge`.
            same_base: As for `merge`.
            encode: As for `merge`.
            progress: As for `merge`.
            then: Called with each module and its merged update where these are made, on several threads; its
                result is yielded in place of the update.
            for_task: As for `merge`.

        Yields:
            The name of the module, and its merged update or what ``then`` made of it.
        """
        adapters = list(adapters)
        self.check(adapters, same_base)
        tasks = [adapter.name for adapter in adapters]
        by_name = dict(zip(tasks, self.task_coefficients(tasks), strict=True))
        modules = list(adapters[0])
        # In the order of their names, so that the bytes do not depend on the order in which they were given.
        adapters.sort(key=lambda adapter: adapter.name)
        tasks = [adapter.name for adapter in adapters]
        coefficients = [by_name[task] for task in tasks]
        merge = self.method.merge if for_task is None else self._task_specific(tasks, for_task)

        def reporting(stage: str, results: Iterable[Any]) -> Iterator[Any]:
            for done, result in enumerate(results, start=1):
                if progress is not None:
                    progress(stage, done, len(modules))
                yield result

        def align(module: str) -> Encoded:
            updates = [adapter[module] for adapter in adapters]
            if len(updates[0].shape) == 1 or not self.space.costly:  # a vector has no basis to align
                return Encoded(updates)
            return (encode or self.space.encode)([update.load() for update in updates])

        if self.space.costly:
            # Factored coordinates are about as large as the adapters, so all modules' are kept; what a method
            # makes of them lives for a block of rows at a time.
            frames = dict(zip(modules, reporting("align", map_modules(align, modules)), strict=True))
            frame_of = frames.__getitem__
        else:
            frame_of = align

        def coordinates(module: str, frame: Encoded) -> list[Update]:
            transformed = []
            for task, update in zip(tasks, frame.coordinates, strict=True):
                for transform in self.transforms:
                    update = transform.transform(update, task, module)
                transformed.append(update)
            return transformed

        def each_module(function: Callable[[list[Update]], Any]) -> Iterable[Any]:
            return reporting(
                "look at all modules",
                map_modules(lambda module: function(coordinates(module, frame_of(module))), modules),
            )

        survey = self.method.survey(each_module)

        def merge_module(module: str) -> Any:
            frame = frame_of(module)
            merged = merge(coordinates(module, frame), coefficients, survey)
            if self.finish is not None:
                merged = self.finish.finish(merged)
            update = frame.decode(merged)
            if not all(map(all_finite, update.tensors().values())):
                raise SheetbendError(f"merging {module} overflows; give smaller coefficients, or adapters of sane size")
            return then(module, update)

        yield from zip(modules, reporting("merge", map_modules(merge_module, modules)), strict=True)

    def _task_specific(self, tasks: Sequence[str], task: str) -> Callable[..., Update]:
        """Return what takes the place of ``method.merge`` for one task's own model."""
        if task not in tasks:
            close = did_you_mean(task, list(tasks))
            raise SheetbendError(f"for_task is {task!r}; known tasks: {', '.join(tasks)}{close}")
        if not self.method.has_task_models:
            raise SheetbendError(
                f"for_task is {task!r}, but {type(self.method).__name__} makes one model for all tasks; use TallMasks"
            )
        return partial(self.method.task_specific, task=tasks.index(task))


def _brief(part: Space | Method | Transform | Finish) -> str:
    """Return the name with what is not as by default; of a step also its first field, its main setting."""
    shown = [
        f"{field.name}={getattr(part, field.name):g}"
        if isinstance(getattr(part, field.name), float)
        else f"{field.name}={getattr(part, field.name)}"
        for index, field in enumerate(fields(part))
        if getattr(part, field.name) != field.default
        or (index == 0 and field.default is not None and not isinstance(part, Space | Finish))
    ]
    return f"{type(part).__name__}({', '.join(shown)})" if shown else type(part).__name__
