"""What a task is, and what a batch of it looks like."""

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mergers.errors import SheetbendError

# What stands for all tasks in tables.
RESERVED = ("all", "mean")


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes:
        name: the name of its adapter, its column in tables and its folder on disk.
        class_names: what the labels 0, 1, ... mean, in words that fit the templates.
        templates: prompts with ``{}`` for the class name.
        label_set: tasks that name the same set share their classes in the joint label space; none: its own.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    label_set: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name) or self.name in RESERVED:
            raise SheetbendError(
                f"task name {self.name!r}: it names a folder and a column; use letters, digits, _ and -, "
                f"and none of {', '.join(RESERVED)}"
            )
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated or not self.class_names:
            raise SheetbendError(
                f"task {self.name}: class names must be there and differ ({', '.join(repeated) or 'none'})"
            )
        for template in self.templates:
            if "{}" not in template:
                raise SheetbendError(f"task {self.name}: template {template!r} has no {{}} for the class name")


class TaskBatch(NamedTuple):
    """One batch of one task.

    Attributes:
        task: name of the task.
        inputs: for images uint8 (B, 3, H, W); none in the empty turn of a task that has stopped.
        labels: int64 (B,), or none.
    """

    task: str
    inputs: Tensor | None
    labels: Tensor | None


class Split(Protocol):
    """The examples of one split of one task; on disk or in memory.

    Attributes:
        labels: int64 (N,).
    """

    labels: Tensor

    def __len__(self) -> int:
        """Return the number of examples."""

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the examples at ``indices``."""

    def example_keys(self) -> list[bytes]:
        """Return one key an example; two examples with one key are the same picture."""


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


def fingerprint(split: Split) -> str:
    """Return a hash of a split's pictures and labels in their order, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key in split.example_keys():
        digest.update(key)
    digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()
