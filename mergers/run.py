"""One merge at work: module by module, on several threads, with little held at a time."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mergers.errors import SheetbendError
from mergers.functional.linalg import all_finite
from mergers.parallel import map_modules
from mergers.spaces.base import Encoded
from mergers.updates import Adapter, Update, fits_float32

if TYPE_CHECKING:
    from mergers.merger import Merger

#: Writes the updates of one weight matrix in a space.
Encode = Callable[[Sequence[Update]], Encoded]

#: Called as work goes on: what is being done, how many modules are done, of how many.
Progress = Callable[[str, int, int], None]

#: Called with the name of a module and its merged update.
Then = Callable[[str, Update], Any]


class MergeRun:
    """The state of one merge.

    Tasks are taken in the order of their names, so that the bytes do not depend on the order in which the adapters
    are given.

    Args:
        merger: What to do.
        adapters: One a task, checked.
        merge: ``merger.method.merge``, or what takes its place.
        encode: ``merger.space.encode``, or what takes its place.
        progress: Called as the work goes on, on the thread that consumes the results.
        device: Where the work is done; None leaves it where the adapters are.
    """

    def __init__(
        self,
        merger: "Merger",
        adapters: Sequence[Adapter],
        merge: Callable[..., Update],
        encode: Encode,
        progress: Progress | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        tasks = [adapter.name for adapter in adapters]
        by_task = dict(zip(tasks, merger.task_coefficients(tasks), strict=True))
        self.adapters = sorted(adapters, key=lambda adapter: adapter.name)
        self.coefficients = [by_task[adapter.name] for adapter in self.adapters]
        self.modules = list(adapters[0])
        self.merger = merger
        self.merge = merge
        self.encode = encode
        self.progress = progress
        self.device = device
        self._frames: dict[str, Encoded] = {}
        self._caller = threading.get_ident()

    def results(self, then: Then | None = None) -> Iterator[tuple[str, Any]]:
        """Yield each module with its merged update on the CPU, or with what ``then`` made of the update."""
        self._caller = threading.get_ident()
        if self.merger.space.costly:
            # Factored coordinates are about as large as the adapters, so all modules' are kept; what a method makes
            # of them lives for a block of rows at a time.
            self._frames = dict(zip(self.modules, self._each("align", self._aligned), strict=True))
        survey = self.merger.method.survey(
            lambda function: self._each(
                "survey", lambda module: function(self._coordinates(module, self._frame(module)))
            )
        )

        def merged(module: str) -> Any:
            update = self._merged(module, survey)
            return update.to("cpu") if then is None else then(module, update)

        yield from zip(self.modules, self._each("merge", merged), strict=True)

    def _each(self, stage: str, function: Callable[[str], Any]) -> Iterable[Any]:
        """Call ``function`` with every module, on several threads; yield the results in order, and report them.

        A pass that a worker begins (see `TrimmedVote`) is not reported.
        """
        on_device = self.device is not None and torch.device(self.device).type != "cpu"
        results = map_modules(function, self.modules, workers=1 if on_device else None)
        for done, result in enumerate(results, start=1):
            if self.progress is not None and threading.get_ident() == self._caller:
                self.progress(stage, done, len(self.modules))
            yield result

    def _frame(self, module: str) -> Encoded:
        """Return the updates of one module in the space of the merger: those that are kept, else made anew."""
        return self._frames.get(module) or self._aligned(module)

    def _aligned(self, module: str) -> Encoded:
        """Write the updates of one module in the space of the merger."""
        updates = [adapter[module] for adapter in self.adapters]
        if self.device is not None:
            updates = [update.to(self.device) for update in updates]
        if len(updates[0].shape) == 1:  # a vector has no basis to align
            return Encoded(updates)
        return self.encode([update.load() for update in updates] if self.merger.space.costly else updates)

    def _coordinates(self, module: str, frame: Encoded | None = None) -> list[Update]:
        """Return the transformed coordinates of all tasks."""
        frame = frame or self._frame(module)
        transformed = []
        for adapter, update in zip(self.adapters, frame.coordinates, strict=True):
            for transform in self.merger.transforms:
                update = transform.transform(update, adapter.name, module)
            transformed.append(update)
        return transformed

    def _merged(self, module: str, survey: Any) -> Update:
        """Return one module's merged update, finite and decoded."""
        frame = self._frame(module)
        merged = self.merge(self._coordinates(module, frame), self.coefficients, survey)
        if self.merger.finish is not None:
            merged = self.merger.finish.finish(merged)
        update = frame.decode(merged)
        if not (all(map(all_finite, update.tensors().values())) and fits_float32(update)):
            raise SheetbendError(f"merging {module} overflows; give smaller coefficients, or adapters of sane size")
        return update
