"""What training and testing take in memory, known before: from steps on a few examples, and by counting."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mergers import Adapter, Merger, Update
from mergers.preflight import merging_bytes

if TYPE_CHECKING:
    from lightning_modules.base import LoRATasks

#: Examples in the two trials from which a larger batch is told.
TRIALS = (2, 4)
#: What activations take in the heap of the C library, over what they are: temporary tensors of many sizes leave holes
#: between those that stay. Measured 1.5 to 1.8 with glibc; blocks given back at once would take half as long again.
HEAP = 1.6


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


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes that ``work`` holds at once on ``device``, beyond what is there before it."""
    if device.type == "cuda":  # the allocator knows, of what kernels take too
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Allocations() as counted:
        work()
    return counted.peak


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
    return _on(module, 2 * trained) + Need(host=trained) + _step(module, "train", module.rehearse_step)


def testing_need(module: "LoRATasks", merges: Sequence[Merger], split: str = "test") -> Need:
    """Return what testing takes: the merges, of which each is made before the next, and a forward pass.

    Args:
        module: on its device, about to be tested.
        merges: what is tested beside the pretrained and the finetuned model.
        split: ``val`` or ``test``.
    """
    adapters = module.adapters() if merges else []
    held = sum(merged_bytes(module, merge, adapters) for merge in merges)
    making = max((merging_bytes(merge, adapters) for merge in merges), default=0)
    copies = sum(tensor.nbytes for one in adapters for update in one.values() for tensor in update.tensors().values())
    passing = _step(module, split, module.rehearse)
    return _on(module, held) + (Need(host=copies + making) | passing)


def _step(module: "LoRATasks", split: str, work: Callable[[Any], None]) -> Need:
    """Return what ``work`` takes on the longest examples that a batch can have."""
    trainer, data = module.trainer, module.trainer.datamodule
    size = data.batch_size if split == "train" else data.eval_batch_size

    def peak(count: int) -> int:
        batch = trainer.strategy.batch_to_device(data.widest(split, count))
        with trainer.precision_plugin.forward_context():
            return peak_of(lambda: work(batch), module.device)

    longest = min(size, max(len(data.split(name, split)) for name in module.task_names))
    found = told(peak, longest)
    return Need(0, found) if module.device.type == "cuda" else Need(round(HEAP * found))


def _on(module: "LoRATasks", count: int) -> Need:
    return Need(0, count) if module.device.type == "cuda" else Need(count)


def merged_bytes(module: "LoRATasks", merge: Merger, adapters: Sequence[Adapter]) -> int:
    """Return what the weights of one merge of ``adapters`` take while they are tested."""
    branches = module.merges_as_branches and merge.low_rank
    size = next(module.model.get_base_model().parameters()).element_size()
    return size * merged_numbers(adapters, branches)


def merged_numbers(adapters: Sequence[Adapter], branches: bool) -> int:
    """Return of how many numbers one merge is, over all modules; as branches beside the layers, where that is fewer."""
    return sum(_numbers([one[module] for one in adapters], branches) for module in adapters[0])


def _numbers(updates: Sequence[Update], branches: bool) -> int:
    shape = updates[0].shape
    whole = shape[0] * shape[1] if len(shape) == 2 else shape[0]
    if not branches or len(shape) != 2:
        return whole
    return min(whole, min(sum(update.rank for update in updates), *shape) * sum(shape))
