"""One implementation of splits, loaders and checks for every dataset."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from datamodules.tasks import Split, Task, TaskBatch, check_listed, fingerprint
from datamodules.turns import BatchDataset, EvalSampler, TaskOrder, TurnLoader, TurnSampler, interleave
from mergers.errors import SheetbendError, did_you_mean
from mergers.seeding import derive_generator

if TYPE_CHECKING:
    from datamodules.sources.hub import Hub

SPLITS = ("train", "val", "test")
# A model for each kind of examples, for messages.
_MODELS = {"images": "ImageClassifier", "texts": "SequenceClassifier", "questions": "TextGenerator"}


class TaskDataModule(LightningDataModule):
    """Several tasks whose training batches come in turn; one validation and one test loader a task.

    The order of a task's training examples depends on (seed, task) alone: training tasks together shows each of them
    the batches that training it alone would.

    A subclass declares its tasks in `known_tasks` (or, where they come from its arguments, in `task_table`) and loads
    one in `load`; what its examples are prepared with, such as a tokenizer, it takes from the model in `attach`.
    Making a datamodule reads no data: names are checked at once, and ``tasks`` are made when they are first needed.

    Attributes:
        task_names: names of the tasks in use, in order.
        quiet: whether no progress is shown where data are read.

    Args:
        tasks: names of the tasks, in the order of tables and turns.
        batch_size: examples in a training batch of each process; two processes train as one with twice the number.
        eval_batch_size: examples in a validation or test batch of each process; results do not depend on it.
        batches_per_epoch: training batches of each task in an epoch (one number, or a map from task name to number);
            passes over the examples follow each other without regard to epochs. None: one pass an epoch.
        num_workers: processes that load batches; 0 loads them in the main process.
        seed: of the order of training examples; none takes the one given to ``seed_everything``, else 0. Splits do
            not depend on it.
    """

    # Whether an example in two splits is an error, or, for data sets that are published so, a caveat of the results.
    overlap: Literal["refuse", "report"] = "refuse"
    # What the examples are, which a model may say that it takes; none goes with every model.
    gives: ClassVar[Literal["images", "texts", "questions"] | None] = None
    quiet: bool = False

    def __init__(
        self,
        tasks: list[str],
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        super().__init__()
        check_listed(tasks, "data.tasks")
        known = self.known_names()
        if not tasks:
            raise SheetbendError(f"data.tasks is empty; name some of {', '.join(known)}")
        for name in tasks:
            if name not in known:
                raise SheetbendError(
                    f"unknown task {name!r}; known tasks: {', '.join(known)}{did_you_mean(name, known)}"
                )
            if tasks.count(name) > 1:
                raise SheetbendError(f"task {name!r} is named twice in data.tasks; name it once")
        self.task_names = tuple(tasks)
        # None means one pass; 0 is a number, and refused.
        counts = batches_per_epoch.values() if isinstance(batches_per_epoch, dict) else [batches_per_epoch]
        for name, value in [
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            *[("batches_per_epoch", count) for count in counts if count is not None],
        ]:
            if not isinstance(value, int) or value < 1:
                raise SheetbendError(f"data.{name} is {value}; give a number of at least 1")
        if not isinstance(num_workers, int) or num_workers < 0:
            raise SheetbendError(f"data.num_workers is {num_workers}; give 0 or the number of processes")
        if isinstance(batches_per_epoch, dict) and set(batches_per_epoch) != set(tasks):
            odd = ", ".join(sorted(set(batches_per_epoch) ^ set(tasks)))
            raise SheetbendError(f"data.batches_per_epoch and data.tasks differ in {odd}; name the same tasks in both")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self._given_batches = batches_per_epoch
        self._splits: dict[str, dict[str, Split]] = {}
        self._fingerprints: dict[str, dict[str, str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._deviations: dict[str, list[str]] = {}
        self._prepared_with: Any = None

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in use, in order; where their classes are not declared, the first use reads their labels."""
        known = self.task_table()
        return tuple(known[name] for name in self.task_names)

    def task(self, name: str) -> Task:
        """Return the task ``name``, one of those in use."""
        return self.tasks[self.task_names.index(name)]

    def declaration(self, task: str) -> Any:
        """Return all that is declared of a published task beside its `Task`: sources, counts, labels; else none."""
        return None

    def missing(self) -> list[str]:
        """Return what `check` has against the tasks in use, one line a task; reads no data."""
        faults = []
        for task in self.task_names:
            try:
                self.check(task)
            except SheetbendError as error:
                faults.append(str(error))
        return faults

    def check_all(self) -> None:
        """Raise `SheetbendError` if anything is `missing`; reads no data."""
        faults = self.missing()
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise SheetbendError(faults[0] + more)

    @classmethod
    def known_tasks(cls) -> dict[str, Task]:
        """Return all tasks that can be named, by name; reads no data."""
        return {}

    def task_table(self) -> dict[str, Task]:
        """Return the tasks by name, those in use at least; one that has to read data for it has `known_names` too."""
        return self.known_tasks()

    def known_names(self) -> list[str]:
        """Return the names of the tasks that this datamodule can load; reads no data."""
        return list(self.task_table())

    @abstractmethod
    def load(self, task: str) -> dict[str, Split]:
        """Return the splits ``train``, ``val`` and ``test`` of one task."""

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if what ``task`` is read from is not installed; reads no data."""

    def sources(self, task: str) -> "dict[str, tuple[Hub | Path, str]]":
        """Return what each split of ``task`` is read from: a place, and the split's name there; reads no data.

        Empty where there is nothing to download or to look for: the data come with installed packages, or are made.
        """
        return {}

    def attach(self, module: Any) -> None:
        """Take from the model (a LightningModule) what examples are prepared with; called before `load`.

        Raises:
            SheetbendError: the model says that it takes other examples (``takes``) than these are (``gives``).
        """
        takes = getattr(module, "takes", None)
        if self.gives is not None and takes is not None and takes != self.gives:
            raise SheetbendError(
                f"{type(self).__name__} gives {self.gives}, and {type(module).__name__} takes {takes}; choose a model "
                f"that takes {self.gives}, such as {_MODELS[self.gives]}"
            )

    def prepared_with(self, key: Any) -> None:
        """Forget what was loaded if it was prepared with something else than ``key``; to be called in `attach`.

        Args:
            key: all that examples depend on of the model; equal keys prepare equally.
        """
        if key != self._prepared_with:
            for loaded in (self._splits, self._fingerprints, self._notes, self._deviations):
                loaded.clear()
        self._prepared_with = key

    def note(self, task: str, sentence: str) -> None:
        """Add a sentence on ``task`` to the caveats; to be called in `load`."""
        self._notes.setdefault(task, []).append(f"{task}: {sentence}")

    def deviation(self, task: str, sentence: str) -> None:
        """Add to the caveats how the data of ``task`` differ from what is published; to be called in `load`.

        A run goes on and says so; ``sheetbend prepare`` does not call such data ready.
        """
        self.note(task, sentence)
        self._deviations.setdefault(task, []).append(f"{task}: {sentence}")

    def notes(self, task: str) -> list[str]:
        """Return what `load` had to say of ``task``; after `ready`."""
        return list(self._notes.get(task, ()))

    def deviations(self, task: str) -> list[str]:
        """Return those of the notes that say how the data differ from what is published; after `ready`."""
        return list(self._deviations.get(task, ()))

    @property
    def caveats(self) -> list[str]:
        """What a reader of results should know of the tasks in use; whole after `setup`."""
        return [sentence for task in self.task_names for sentence in self._notes.get(task, ())]

    def setup(self, stage: str | None = None) -> None:
        """Load every task once, and check that no example is in two splits of its task."""
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if place(self.trainer)[1] > 1 and getattr(connector, "use_distributed_sampler", False):
            raise SheetbendError(
                "trainer.use_distributed_sampler is true, but tasks deal out their examples themselves; give false"
            )
        self.check_all()
        if self.trainer is not None:
            self.attach(self.trainer.lightning_module)
        for task in self.tasks:
            self.ready(task)

    def ready(self, task: Task) -> None:
        """Load one task, if that has not been done, and check its labels and that its splits do not overlap."""
        if task.name not in self._splits:
            splits = self.load(task.name)
            check_labels(task, splits)
            self._check_overlap(task.name, splits)
            self._fingerprints[task.name] = {name: fingerprint(splits[name]) for name in SPLITS}
            self._splits[task.name] = splits

    def _check_overlap(self, task: str, splits: dict[str, Split]) -> None:
        for (first, second), count in overlaps(splits).items():
            shared = f"its {first} and {second} splits share {count} example{'' if count == 1 else 's'}"
            if self.overlap == "refuse":
                raise SheetbendError(f"task {task}: {shared}; splits must not overlap")
            self.note(task, f"{shared}, as the data are published.")

    def batches_per_epoch(self, task: str) -> int:
        """Return the training batches of ``task`` in one epoch; after `setup`."""
        if isinstance(self._given_batches, dict):
            return self._given_batches[task]
        return self._given_batches or -(-len(self._splits[task]["train"]) // (self.batch_size * place(self.trainer)[1]))

    def steps_per_epoch(self) -> dict[str, int]:
        """Return the optimiser steps of each task in one epoch, under the trainer's limit and accumulation."""
        turn = self.trainer.accumulate_grad_batches
        batches = {name: self.batches_per_epoch(name) for name in self.task_names}
        items, limit = list(interleave(batches, turn)), self.trainer.limit_train_batches
        kept = items[: limit if isinstance(limit, int) else int(limit * len(items))]
        # The last step of an epoch may accumulate fewer batches.
        steps = Counter(task for task, _ in kept[::turn])
        return {task: steps[task] for task in batches}

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Return a hash of every split, {task: {split: 64 hexadecimal digits}}; after `setup`."""
        return {task: dict(splits) for task, splits in self._fingerprints.items()}

    def split(self, task: str, name: str) -> Split:
        """Return one split of one task; after `setup`."""
        return self._splits[task][name]

    def train_dataloader(self) -> DataLoader:
        """Return one loader of `TaskBatch`, tasks in turn."""
        names = self.task_names
        splits = {name: self._splits[name]["train"] for name in names}
        rank, world = place(self.trainer)
        orders = {name: TaskOrder(name, len(splits[name]), self.batch_size * world, self.seed) for name in names}
        sampler = TurnSampler(
            orders,
            {name: self.batches_per_epoch(name) for name in names},
            turn=self.trainer.accumulate_grad_batches if self.trainer else 1,
            finished=self._finished_tasks,
            same_epoch=bool(self.trainer and self.trainer.overfit_batches),
        )
        return self._loader(BatchDataset(splits, rank, world), sampler, TurnLoader)

    def val_dataloader(self) -> list[DataLoader]:
        """Return one loader a task, in the order of the tasks."""
        return self.eval_loaders("val", *place(self.trainer))

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader a task, in the order of the tasks."""
        return self.eval_loaders("test", *place(self.trainer))

    def eval_loaders(self, split: str, rank: int = 0, world: int = 1) -> list[DataLoader]:
        """Return one loader a task, in the order of the tasks, of what one process has of each batch.

        Raises:
            SheetbendError: a task has fewer examples than there are processes, so that one would have no score of it.
        """
        loaders = []
        for name, data in self._splits.items():
            if len(data[split]) < world:
                raise SheetbendError(
                    f"task {name}: {len(data[split])} examples are too few for {world} processes; give fewer devices"
                )
            sampler = EvalSampler(name, data[split].eval_order(), self.eval_batch_size * world)
            loaders.append(self._loader(BatchDataset({name: data[split]}, rank, world), sampler))
        return loaders

    def sample_loaders(self, split: str, count: int) -> list[DataLoader]:
        """Return one loader a task of as many of its examples, drawn by the seed; fewer where a task has fewer."""
        count = min(count, *(len(data[split]) for data in self._splits.values()))
        loaders = []
        for name, data in self._splits.items():
            drawn = torch.randperm(len(data[split]), generator=derive_generator(self.seed, name, "sample"))[:count]
            sampler = EvalSampler(name, drawn.sort().values.tolist(), self.eval_batch_size)
            loaders.append(self._loader(BatchDataset({name: data[split]}), sampler))
        return loaders

    def widest(self, split: str, count: int) -> TaskBatch:
        """Return ``count`` examples of the task whose longest take the most memory, the longest of them; no more."""

        def size(task: Task) -> tuple[int, int]:
            inputs = tree_leaves(self._splits[task.name][split].batch(self._longest(task.name, split, 1))[0])
            return sum(part.nbytes for part in inputs), len(getattr(task, "class_names", ()))

        task = max(self.tasks, key=size).name
        return BatchDataset({task: self._splits[task][split]})[task, self._longest(task, split, count)]

    def _longest(self, task: str, split: str, count: int) -> list[int]:
        return list(self._splits[task][split].eval_order()[:count])

    def _loader(self, dataset: BatchDataset, sampler: Any, kind: type[DataLoader] = DataLoader) -> DataLoader:
        # A generator of its own: without one the loader would draw from the global stream.
        return kind(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            generator=derive_generator(self.seed, "workers"),
        )

    def _finished_tasks(self) -> Collection[str]:
        module = self.trainer.lightning_module if self.trainer else None
        return getattr(module, "finished_tasks", ())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        return {"fingerprints": self.fingerprints()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other data than a checkpoint was trained on."""
        for task, splits in state_dict.get("fingerprints", {}).items():
            if task in self._fingerprints and self._fingerprints[task] != splits:
                raise SheetbendError(
                    f"task {task}: its examples are not those that the checkpoint was trained on; start a run of "
                    "its own with another --trainer.default_root_dir"
                )


def place(trainer: Any) -> tuple[int, int]:
    """Return the number of this process and how many there are, (0, 1) without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def check_labels(task: Any, splits: dict[str, Split]) -> None:
    """Raise `SheetbendError` for an empty split, or a label that is none of the classes that ``task`` has."""
    for name, split in splits.items():
        if len(split) == 0:
            raise SheetbendError(f"task {task.name}: its {name} split has no examples; give it some")
        if not isinstance(task, Task):  # answers in words have no classes
            continue
        absent = [task.class_names.index(one) for one in task.absent]
        labels = split.labels
        odd = (labels < 0) | (labels >= len(task.class_names)) | torch.isin(labels, torch.tensor(absent).long())
        if odd.any():
            row = int(odd.nonzero()[0])
            raise SheetbendError(
                f"task {task.name}: example {row} of its {name} split has the label {int(labels[row])}, but the task's "
                f"labels are 0 to {len(task.class_names) - 1}{f' without {absent}' if absent else ''}; "
                "mend the data, or name all classes"
            )


def overlaps(splits: dict[str, Split]) -> dict[tuple[str, str], int]:
    """Count the examples of the later split that the earlier one has too, for each pair that shares some."""
    keys = {name: splits[name].example_keys() for name in SPLITS}
    counts = {}
    for first, second in combinations(SPLITS, 2):
        earlier = set(keys[first])
        count = sum(key in earlier for key in keys[second])
        if count:
            counts[first, second] = count
    return counts
