"""What training, testing and adapting take in memory, known before: from steps on a few examples, and by counting."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.test_time_adaptation import TestTimeAdaptation, leaves_of
from mergers import Adapter, Merger, Update
from mergers.preflight import merging_bytes

if TYPE_CHECKING:
    from datamodules import TaskDataModule
    from lightning_modules.base import LoRATasks

#: Examples in the two trials from which a larger batch is told.
TRIALS = (2, 4)
#: What activations take in the heap of the C library, over what they are: temporary tensors of many sizes leave holes
#: between those that stay. Measured 1.3 to 1.8 with glibc; blocks given back at once would take half as long again.
HEAP = 1.5


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, wherever they are.

    Attributes:
        now: bytes of those that are still there.
        peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation; what it gives and was not there before is new."""
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


class Held:
    """How many bytes more than at its beginning are held on a device, and were at most; a context.

    Attributes:
        device: whose bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._count = Allocations()
        self._before = 0

    def __enter__(self) -> "Held":
        """Begin at zero."""
        if self.device.type == "cuda":  # its allocator knows, of what kernels take too
            self.restart()
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._count.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Count no more."""
        if self.device.type != "cuda":
            self._count.__exit__(*exception)

    def restart(self) -> None:
        """Let `peak` begin at what is held now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._count.peak = self._count.now

    @property
    def peak(self) -> int:
        """The most that was held since the last restart."""
        if self.device.type != "cuda":
            return self._count.peak
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self._before

    @property
    def now(self) -> int:
        """What is held now."""
        return (
            torch.cuda.memory_allocated(self.device) - self._before if self.device.type == "cuda" else self._count.now
        )


def told(peaks: Callable[[int], int], size: int, trials: tuple[int, int] = TRIALS) -> int:
    """Return the peak of a step on ``size`` examples, by the line through two trials on a few.

    Args:
        peaks: the peak of a step on so many examples.
        size: of the batch.
        trials: examples in the trials, the fewer first.

    >>> told(lambda size: 1000 + 10 * size, 64)
    1640
    """
    few, more = trials
    if size <= more:
        return peaks(size)
    first, second = peaks(few), peaks(more)
    return second + (second - first) * (size - more) // (more - few)


@dataclass(frozen=True)
class Need:
    """Bytes that work takes at its peak, beyond what is held before it.

    Attributes:
        host: in the machine's memory.
        device: on the GPU; 0 where the work is done on the CPU.
    """

    host: int
    device: int = 0

    def __or__(self, other: "Need") -> "Need":
        """Return what one work and then the other take."""
        return Need(max(self.host, other.host), max(self.device, other.device))

    def __add__(self, other: "Need") -> "Need":
        """Return what both take together."""
        return Need(self.host + other.host, self.device + other.device)


def training_need(module: "LoRATasks") -> Need:
    """Return what fitting takes but for validation: the step on the longest examples, and what grows with training.

    The moments of AdamW come with the first steps of each task, and so do the copies of the best adapters, on the CPU.

    Args:
        module: on its device, about to be trained.
    """
    trained = sum(p.nbytes for name in module.task_names for p in module.task_parameters(name).values())
    return _on(module, 2 * trained) + Need(host=trained) + _pass(module, "train", module.rehearse_step)


def adapting_need(module: TestTimeAdaptation) -> Need:
    """Return what learning a merge takes: weights with what they are made of, and one task's pass after the other.

    The looks at its accuracy are counted too; the test that follows is `testing_need`'s.

    Args:
        module: on its device, about to be fitted.
    """
    tester, size = module.tester, module.trainer.datamodule.batch_size
    with Held(module.device) as held:
        weights = module.merged_weights()
        leaves = leaves_of(weights)

        def peak(count: int) -> int:
            batch = _widest(tester, module.settings.adapt_on, count)
            held.restart()
            with module.trainer.precision_plugin.forward_context():
                module.there_and_back(batch, leaves)
            return held.peak

        peak(TRIALS[0])  # the gradients of the weights come with the first pass
        made, passing = held.now, told(peak, size)
        held.restart()
        module.rehearse_back(weights, leaves)
        merging = held.peak
    looking = _on(tester, made) + _pass(tester, "val", tester.rehearse)
    return _on(tester, merging) | (_on(tester, made) + _heaped(tester, passing - made)) | looking


def testing_need(module: "LoRATasks", merges: Sequence[Merger], split: str = "test", learned: int = 0) -> Need:
    """Return what testing takes: the merges, of which each is made before the next, and a forward pass.

    Args:
        module: on its device, about to be tested.
        merges: what is tested beside the pretrained and the finetuned model.
        split: ``val`` or ``test``.
        learned: how many merges more come from an adaptation, ready made.
    """
    adapters = module.adapters() if merges or learned else []
    held = sum(merged_bytes(module, merge, adapters) for merge in merges)
    if learned:
        held += learned * _weight_size(module) * merged_numbers(adapters, module.merges_as_branches)
    making = max((merging_bytes(merge, adapters) for merge in merges), default=0)
    copies = sum(tensor.nbytes for one in adapters for update in one.values() for tensor in update.tensors().values())
    passing = _pass(module, split, module.rehearse)
    return _on(module, held) + (Need(host=copies + making) | passing)


def _pass(module: "LoRATasks", split: str, work: Callable[[Any], None]) -> Need:
    """Return what ``work`` takes on the longest examples that a batch can have."""
    data = data_of(module)
    size = data.batch_size if split == "train" else data.eval_batch_size

    def peak(count: int) -> int:
        batch = _widest(module, split, count)
        forward = module.trainer.precision_plugin.forward_context()
        # A model that does not train keeps its activations, whatever `gradient_checkpointing` says.
        with _in_mode(module, split == "train"), forward, Held(module.device) as held:
            work(batch)
            return held.peak

    longest = min(size, max(len(data.split(name, split)) for name in module.task_names))
    return _heaped(module, told(peak, longest))


@contextmanager
def _in_mode(module: torch.nn.Module, training: bool) -> Iterator[None]:
    before = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


def _widest(module: "LoRATasks", split: str, count: int) -> Any:
    return module.trainer.strategy.batch_to_device(data_of(module).widest(split, count))


def data_of(module: "LoRATasks") -> "TaskDataModule":
    """Return the tasks' data, also where what the Trainer has gives their batches without labels."""
    data = module.trainer.datamodule
    return getattr(data, "datamodule", data)


def _on(module: "LoRATasks", count: int) -> Need:
    return Need(0, count) if module.device.type == "cuda" else Need(count)


def _heaped(module: "LoRATasks", count: int) -> Need:
    return _on(module, count if module.device.type == "cuda" else round(HEAP * count))


def _weight_size(module: "LoRATasks") -> int:
    return next(module.model.get_base_model().parameters()).element_size()


def merged_bytes(module: "LoRATasks", merge: Merger, adapters: Sequence[Adapter]) -> int:
    """Return what the weights of one merge of ``adapters`` take while they are tested."""
    branches = module.merges_as_branches and merge.low_rank
    return _weight_size(module) * merged_numbers(adapters, branches)


def merged_numbers(adapters: Sequence[Adapter], branches: bool) -> int:
    """Return of how many numbers one merge is, over all modules; as branches beside the layers, where that is fewer."""
    return sum(_numbers([one[module] for one in adapters], branches) for module in adapters[0])


def _numbers(updates: Sequence[Update], branches: bool) -> int:
    shape = updates[0].shape
    whole = shape[0] * shape[1] if len(shape) == 2 else shape[0]
    if not branches or len(shape) != 2:
        return whole
    return min(whole, min(sum(update.rank for update in updates), *shape) * sum(shape))
