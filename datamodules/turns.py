"""The order of training batches: tasks take turns, and each sees its own examples in its own order."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from datamodules.tasks import Split, TaskBatch
from mergers.seeding import derive_generator

Key = tuple[str, list[int] | None]


def interleave(batches: dict[str, int], turn: int = 1) -> Iterator[tuple[str, int | None]]:
    """Yield (task, batch number) for one epoch.

    Each task has ``turn`` batches in a row, then the next one has its turn; tasks with fewer batches end earlier. A
    last turn that is not full begins with (task, None), so that an optimiser step over ``turn`` accumulated batches
    never mixes tasks; it comes before the real batches, since mixed precision skips a step whose last batch is empty.

    >>> list(interleave({"a": 3, "b": 1}, turn=2))
    [('a', 0), ('a', 1), ('b', None), ('b', 0), ('a', None), ('a', 2)]
    """
    for start in range(0, max(batches.values(), default=0), turn):
        for task, count in batches.items():
            if start < count:
                stop = min(start + turn, count)
                for _ in range(start + turn - stop):
                    yield task, None
                for number in range(start, stop):
                    yield task, number


def turn_count(batches: dict[str, int], turn: int = 1) -> int:
    """Return how many items `interleave` yields."""
    return sum(-(-count // turn) * turn for count in batches.values())


class TaskOrder:
    """The endless sequence of one task's training batches.

    One pass over the examples follows another, each shuffled by (seed, task, pass) alone: neither the other tasks nor
    an interruption change it. The last batch of a pass may be smaller.

    Args:
        task: name of the task.
        size: number of examples.
        batch_size: examples a batch.
        seed: of the shuffling.
    """

    def __init__(self, task: str, size: int, batch_size: int, seed: int):
        self.task, self.size, self.batch_size, self.seed = task, size, batch_size, seed
        self.per_pass = -(-size // batch_size)
        self._pass: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int) -> list[int]:
        """Return the example indices of batch ``number``, counted from the start of training."""
        whole, position = divmod(number, self.per_pass)
        if self._pass[0] != whole:
            generator = derive_generator(self.seed, self.task, "order", whole)
            self._pass = (whole, torch.randperm(self.size, generator=generator).tolist())
        return self._pass[1][position * self.batch_size : (position + 1) * self.batch_size]


class TurnSampler(SequentialSampler):
    """Keys (task, example indices) of one epoch's training batches.

    By type a ``SequentialSampler``, since Lightning puts one over the examples in the place of any other sampler
    where ``overfit_batches`` is set; ``same_epoch`` does what that flag asks for.

    Args:
        orders: the batch order of each task.
        batches: batches of each task in one epoch.
        turn: batches in a row of one task; the number of accumulated batches.
        finished: returns the names of tasks that have stopped; their turns yield (task, None).
        same_epoch: whether every epoch repeats the first.
    """

    def __init__(
        self,
        orders: dict[str, TaskOrder],
        batches: dict[str, int],
        turn: int = 1,
        finished: Callable[[], Collection[str]] = tuple,
        same_epoch: bool = False,
    ):
        self.orders, self.batches, self.turn, self.finished = orders, batches, turn, finished
        self.same_epoch = same_epoch
        self.epoch = 0
        self._resume = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Take up the order of ``epoch``; Lightning calls it, after a resume too."""
        self.epoch = epoch

    def resume_at(self, epoch: int, position: int) -> None:
        """Begin ``epoch`` at its key number ``position``; other epochs begin at their first."""
        self._resume = (epoch, position)

    @property
    def start(self) -> int:
        """How many keys of the present epoch are left out, since an interrupted run has had them."""
        epoch, position = self._resume
        return position if epoch == self.epoch else 0

    def __len__(self) -> int:
        """Return the number of turns' batches in one epoch, empty ones included."""
        return turn_count(self.batches, self.turn)

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys of one epoch, or those that an interrupted one has left."""
        finished = set(self.finished())
        epoch = 0 if self.same_epoch else self.epoch
        for task, number in islice(interleave(self.batches, self.turn), self.start, None):
            if number is None or task in finished:
                yield task, None
            else:
                yield task, self.orders[task].batch(epoch * self.batches[task] + number)


class EvalSampler(SequentialSampler):
    """Keys of one task's examples, ``batch_size`` at a time.

    Args:
        task: name of the task.
        order: example indices in the order in which they come.
        batch_size: examples a batch.
    """

    def __init__(self, task: str, order: Sequence[int], batch_size: int):
        self.task, self.order, self.batch_size = task, order, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys."""
        for start in range(0, len(self.order), self.batch_size):
            yield self.task, list(self.order[start : start + self.batch_size])


class BatchDataset(Dataset[TaskBatch]):
    """Whole batches by key, or what one of several processes has of them; used with ``DataLoader(batch_size=None)``.

    All processes go through the same keys, so that they take the same number of steps; a batch is dealt out to them
    example by example, and one with fewer examples than processes leaves some of them none.

    Args:
        splits: one of each task.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, splits: dict[str, Split], rank: int = 0, world: int = 1):
        self.splits, self.rank, self.world = splits, rank, world

    def __getitem__(self, key: Key) -> TaskBatch:
        """Return the batch of (task, example indices)."""
        task, indices = key
        own = (indices or [])[self.rank :: self.world]
        content = self.splits[task].batch(own) if own else (None, None)
        return TaskBatch(task, *content)._replace(elsewhere=len(indices or []) - len(own))


class TurnLoader(DataLoader):
    """A loader over a `TurnSampler` that a checkpoint can resume, in the middle of an epoch too."""

    _given = 0  # batches of the present epoch that have been handed out

    def __iter__(self) -> Iterator[TaskBatch]:
        """Yield the batches of one epoch.

        Nothing is drawn before the first batch is asked for: Lightning makes the first iterator before it says
        which epoch a resumed run is in, and workers would fetch that epoch's batches ahead.
        """
        self._given = self.sampler.start
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches have been handed out."""
        return {"epoch": self.sampler.epoch, "position": self._given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that had been handed out."""
        if state_dict["position"] < len(self):
            self.sampler.resume_at(state_dict["epoch"], state_dict["position"])
