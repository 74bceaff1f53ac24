"""What a task is, and what a batch of it looks like."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mergers.errors import SheetbendError

# What stands for all tasks in tables.
RESERVED = ("all", "mean")


def check_task_name(name: str) -> None:
    """Raise `SheetbendError` unless ``name`` can be a folder and a column of tables."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in RESERVED:
        raise SheetbendError(
            f"task name {name!r}: it names a folder and a column; use letters, digits, _ and -, "
            f"and none of {', '.join(RESERVED)}"
        )


def check_listed(names: Sequence[str], what: str) -> None:
    """Raise `SheetbendError` if ``names`` is one bare name, whose letters would be taken for names."""
    if isinstance(names, str):
        raise SheetbendError(f"{what} is {names!r}, one name; give a list of names, [{names!r}] for this one alone")


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes:
        name: the name of its adapter, its column in tables and its folder on disk.
        class_names: what the labels 0, 1, ... mean, in words that fit the templates.
        templates: prompts with ``{}`` for the class name; none where a model has no text tower.
        label_set: tasks that name the same set share their classes in the joint label space; none: its own.
        absent: classes of a shared label space that this task's examples never have; they are left out of the choice
            in training and evaluation.
        metric: the name of the number that stands for the task in tables: accuracy, matthews or accuracy_and_f1.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = ()
    label_set: str | None = None
    absent: tuple[str, ...] = ()
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_task_name(self.name)
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated or not self.class_names:
            raise SheetbendError(
                f"task {self.name}: class names must be there and differ ({', '.join(repeated) or 'none'})"
            )
        for template in self.templates:
            if "{}" not in template:
                raise SheetbendError(f"task {self.name}: template {template!r} has no {{}} for the class name")
        for name in self.absent:
            if name not in self.class_names:
                raise SheetbendError(
                    f"task {self.name}: absent class {name!r} is none of {', '.join(self.class_names)}"
                )
        if len(self.class_names) == 1:
            raise SheetbendError(f"task {self.name}: it has one class, {self.class_names[0]}; give 2 or more")


class TaskBatch(NamedTuple):
    """One batch of one task.

    Attributes:
        task: name of the task.
        inputs: for images uint8 (B, 3, H, W), for texts a map of int64 (B, L); none where this process has no example
            of the batch, as in the empty turn of a task that has stopped.
        labels: int64 (B,), or none; where answers in words are learned, their tokens, int64 (B, M).
        references: for generated text, the right answers; else none.
        elsewhere: examples of this batch that other processes have.
    """

    task: str
    inputs: Any
    labels: Tensor | None
    references: list[str] | None = None
    elsewhere: int = 0


class Split(Protocol):
    """The examples of one split of one task; on disk or in memory.

    Attributes:
        labels: int64 (N,).

    A split of answers in words also has ``references``, N right answers.
    """

    labels: Tensor

    def __len__(self) -> int:
        """Return the number of examples."""

    def batch(self, indices: list[int]) -> tuple:
        """Return inputs and labels of the examples at ``indices``, and references where the task has them."""

    def example_keys(self) -> Sequence[bytes]:
        """Return one key an example; two examples with one key are the same picture or text."""

    def eval_order(self) -> Sequence[int]:
        """Return the order in which evaluation takes the examples; results do not depend on it."""


class ArrayData:
    """A split in memory.

    Args:
        inputs: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    def __init__(self, inputs: Tensor | np.ndarray, labels: Tensor | np.ndarray):
        # A copy where it is numpy's: arrays read from files may be read-only.
        self.inputs = torch.tensor(inputs) if isinstance(inputs, np.ndarray) else inputs
        self.labels = torch.tensor(np.asarray(labels), dtype=torch.int64)
        if self.inputs.dtype != torch.uint8 or self.inputs.ndim != 4 or len(self.inputs) != len(self.labels):
            raise ValueError(
                f"inputs are {self.inputs.dtype} {tuple(self.inputs.shape)} with {len(self.labels)} labels; "
                "uint8 (N, 3, H, W) with N labels is needed"
            )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return uint8 (B, 3, H, W) and int64 (B,)."""
        return self.inputs[indices], self.labels[indices]

    def example_keys(self) -> list[bytes]:
        """Return a hash of each picture."""
        return [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in self.inputs]

    def eval_order(self) -> range:
        """Return the order in which the examples stand."""
        return range(len(self))


def fingerprint(split: Split) -> str:
    """Return a hash of a split's examples, labels and references in their order, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key in split.example_keys():
        digest.update(key)
    digest.update(split.labels.numpy().tobytes())
    for text in getattr(split, "references", ()):
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()
