"""From adapters to one adapter."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import torch

from mergers.adapters.checks import align, check_same_base
from mergers.errors import SheetbendError, did_you_mean
from mergers.finishes.base import Finish
from mergers.merged import MergedAdapter
from mergers.methods.base import Method
from mergers.registry import resolve
from mergers.run import Encode, MergeRun, Progress, Then
from mergers.spaces.base import Space
from mergers.transforms.base import Transform
from mergers.updates import Adapter, Update


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
            if step.needs_norms and not self.space.keeps_singular_values:
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
        return f"{steps}, in {_brief(self.space)} space{_shown(self.coefficients)}"

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
        missing: Literal["error", "zero"] = "error",
        encode: Encode | None = None,
        progress: Progress | None = None,
        device: torch.device | str | None = None,
        for_task: str | None = None,
    ) -> MergedAdapter:
        """Merge adapters of one base model.

        Args:
            adapters: One a task, with distinct names; any ranks and floating dtypes.
            same_base: Accept different names of the base model.
            missing: What to do about modules that some adapters lack; see `align`.
            encode: Takes the place of ``space.encode``, such as what `AlignmentCache.encoder` returns.
            progress: Called as the work goes on.
            device: Where the work is done, such as ``"cuda"``; by default where the adapters are. The result is on
                the CPU.
            for_task: Name of the task whose own model is made, by a method that has one (TallMasks); by default
                one model is made for all tasks.

        Raises:
            SheetbendError: The adapters do not fit together, or the coefficients or ``for_task`` do not fit them.
        """
        adapters = align(adapters, missing)
        updates = dict(self.stream(adapters, same_base, encode, progress, device, for_task=for_task))
        return MergedAdapter(updates, self, adapters, for_task)

    def check(
        self,
        adapters: Sequence[Adapter],
        same_base: bool = False,
        for_task: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Raise `SheetbendError` unless ``adapters`` fit together, and coefficients and other arguments fit them."""
        check_same_base(adapters, same_base=same_base)
        self.task_coefficients([adapter.name for adapter in adapters])
        self._merge_of(adapters, for_task)
        if device is not None:
            try:
                torch.ones(1, device=device).item()  # the device "meta" holds no values
            except Exception as error:  # each backend has its own
                reason = " ".join(str(error).split()).split(". ")[0]
                raise SheetbendError(
                    f"device is {str(device)!r}: {reason}; give one that torch has, such as cpu"
                ) from None

    def stream(
        self,
        adapters: Sequence[Adapter],
        same_base: bool = False,
        encode: Encode | None = None,
        progress: Progress | None = None,
        device: torch.device | str | None = None,
        then: Then | None = None,
        for_task: str | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Merge adapters of one base model and one set of module names, yielding each module as soon as it is merged.

        What is held are the adapters, their alignment (about as large as they are in float32), and the few modules
        that are being worked on.

        Args:
            adapters: As for `merge`.
            same_base: As for `merge`.
            encode: As for `merge`.
            progress: As for `merge`.
            device: As for `merge`.
            then: Called with each module and its merged update where these are made, on ``device`` and on several
                threads; its result is yielded in place of the update.
            for_task: As for `merge`.

        Yields:
            The name of the module, and its merged update or what ``then`` made of it.
        """
        self.check(adapters, same_base, for_task, device)
        merge = self._merge_of(adapters, for_task)
        yield from MergeRun(self, adapters, merge, encode or self.space.encode, progress, device).results(then)

    def _merge_of(self, adapters: Sequence[Adapter], task: str | None) -> Callable[..., Update]:
        """Return ``method.merge``, or what takes its place for one task's own model."""
        if task is None:
            return self.method.merge
        tasks = sorted(adapter.name for adapter in adapters)  # the order in which they are merged
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


def _shown(coefficients: float | list[float] | dict[str, float]) -> str:
    """Return what to say of the coefficients, nothing where they are 1."""
    if isinstance(coefficients, dict):
        return ", coefficients " + ", ".join(f"{task} {value:g}" for task, value in coefficients.items())
    if isinstance(coefficients, list | tuple):
        return ", coefficients " + ", ".join(f"{value:g}" for value in coefficients)
    return "" if coefficients == 1.0 else f", coefficient {coefficients:g}"
