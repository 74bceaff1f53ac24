"""Batches of all tasks at once, without their labels."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from datamodules.base import TaskDataModule, place
from datamodules.tasks import Split, TaskBatch
from datamodules.turns import TaskOrder
from mergers.errors import SheetbendError
from mergers.seeding import derive_generator

StepKey = tuple[tuple[str, list[int]], ...]


class StepSampler(SequentialSampler):
    """Keys of the steps of one epoch: for each task, the indices of its batch.

    Args:
        orders: the endless sequence of batches of each task.
        examples: of each task, which of the split's examples are used, (n,) int64.
        steps: in an epoch.
        rank: of this process among ``world``; each takes every ``world``-th batch of a task.
        world: number of processes.

    Attributes:
        given: steps that have been handed out since the beginning.
    """

    def __init__(
        self,
        orders: dict[str, TaskOrder],
        examples: dict[str, torch.Tensor],
        steps: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.orders, self.examples, self.steps, self.rank, self.world = orders, examples, steps, rank, world
        self.given = 0

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.steps

    def __iter__(self) -> Iterator[StepKey]:
        """Yield the keys of one epoch, or those that an interrupted one has left."""
        for step in range(self.given, (self.given // self.steps + 1) * self.steps):
            number = step * self.world + self.rank
            yield tuple(
                (task, self.examples[task][order.batch(number)].tolist()) for task, order in self.orders.items()
            )


class StepLoader(DataLoader):
    """A loader over a `StepSampler` that a checkpoint can resume, in the middle of an epoch too.

    It counts steps itself: where a run whose length is given in steps resumes at the end of an epoch, Lightning counts
    that epoch twice.
    """

    def __iter__(self) -> Iterator[tuple[TaskBatch, ...]]:
        """Yield the batches of one epoch; nothing is drawn before the first is asked for."""
        for batches in super().__iter__():
            self.sampler.given += 1
            yield batches

    def state_dict(self) -> dict[str, int]:
        """Return how many steps have been handed out."""
        return {"given": self.sampler.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after them."""
        self.sampler.given = state_dict["given"]


class StepDataset(Dataset[tuple[TaskBatch, ...]]):
    """One batch of each task by key, without labels; used with ``DataLoader(batch_size=None)``."""

    def __init__(self, splits: dict[str, Split]):
        self.splits = splits

    def __getitem__(self, key: StepKey) -> tuple[TaskBatch, ...]:
        """Return the batches; what the splits say of labels goes no further."""
        return tuple(TaskBatch(task, self.splits[task].batch(indices)[0], None) for task, indices in key)


class UnlabelledBatches(LightningDataModule):
    """Steps of one unlabelled batch a task for fitting; validation and test as in the datamodule they are made from.

    Examples come in passes, each shuffled by (seed, task, pass) alone, so that an interrupted run sees what an
    uninterrupted one does. With several devices, batches of a task are dealt to them in turn.

    Args:
        datamodule: has been set up; its labels are used in validation and test only.
        split: whose examples are used.
        fraction: share of them, chosen by the seed, in (0, 1].
        batch_size: examples of each task in a step, on each device.
        steps: of the optimiser in an epoch; each takes as many batches as are accumulated.
        seed: of the choice and of the order.
        caveats: sentences for the report, beside those of ``datamodule``.
    """

    def __init__(
        self,
        datamodule: TaskDataModule,
        split: Literal["train", "val", "test"] = "test",
        fraction: float = 1.0,
        batch_size: int = 16,
        steps: int = 100,
        seed: int = 0,
        caveats: tuple[str, ...] = (),
    ):
        super().__init__()
        self.datamodule, self.split_name, self.fraction = datamodule, split, fraction
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self._caveats = caveats
        self.splits = {task: datamodule.split(task, split) for task in datamodule.task_names}
        self.examples = {task: self._chosen(task, len(data)) for task, data in self.splits.items()}

    def _chosen(self, task: str, size: int) -> torch.Tensor:
        count = round(self.fraction * size)
        if count == 0:
            raise SheetbendError(
                f"task {task}: fraction {self.fraction:g} of the {size} examples of its {self.split_name} split leaves "
                "none; give a larger one"
            )
        generator = derive_generator(self.seed, task, "unlabelled")
        return torch.randperm(size, generator=generator)[:count].sort().values

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return self.datamodule.task_names

    @property
    def caveats(self) -> list[str]:
        """What a reader of results should know."""
        return [*self.datamodule.caveats, *self._caveats]

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return a hash of every split, {task: {split: 64 hexadecimal digits}}."""
        return self.datamodule.fingerprints()

    def train_dataloader(self) -> DataLoader:
        """Return a loader of tuples of `TaskBatch`, one a task, whose labels are None."""
        orders = {
            task: TaskOrder(task, len(examples), self.batch_size, self.seed) for task, examples in self.examples.items()
        }
        batches = self.steps * (self.trainer.accumulate_grad_batches if self.trainer else 1)
        sampler = StepSampler(orders, self.examples, batches, *place(self.trainer))
        return StepLoader(
            StepDataset(self.splits),
            sampler=sampler,
            batch_size=None,
            num_workers=self.datamodule.num_workers,
            generator=derive_generator(self.seed, "workers"),
        )

    def val_dataloader(self) -> list[DataLoader]:
        """Return one loader a task, of this process's share of the examples."""
        return self.datamodule.eval_loaders("val", *place(self.trainer))

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader a task, of this process's share of the examples."""
        return self.datamodule.eval_loaders("test", *place(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        return self.datamodule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other data."""
        self.datamodule.load_state_dict(state_dict)
