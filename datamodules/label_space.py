"""One label space for all tasks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datamodules.tasks import check_listed
from mergers.errors import SheetbendError, did_you_mean


@dataclass(frozen=True)
class JointLabels:
    """The classes of all tasks in one list.

    Attributes:
        names: (owner, class name) of each joint class; the owner is a label set that tasks share, or a task; the same
            for all where classes are joined by name.
        columns: for each task, the joint index of each of its classes, in the task's own order.
    """

    names: tuple[tuple[str, str], ...]
    columns: dict[str, tuple[int, ...]]

    def __len__(self) -> int:
        """Return the number of joint classes."""
        return len(self.names)

    def among(self, logits: torch.Tensor, tasks: Sequence[str]) -> torch.Tensor:
        """Return logits (N, J) with minus infinity for the classes that none of ``tasks`` has."""
        own = sorted({column for task in tasks for column in self.columns[task]})
        kept = torch.full_like(logits, -math.inf)
        kept[:, own] = logits[:, own]
        return kept


def joint_labels(tasks: Sequence[Any], by_name: bool = False) -> JointLabels:
    """Join the classes of ``tasks``: those of one ``label_set`` share theirs, all others keep their own.

    Args:
        tasks: objects with ``name``, ``class_names`` and ``label_set`` (none: its own).
        by_name: classes of one name are one class, whichever task they are from.

    Raises:
        SheetbendError: tasks that share a label set have different classes.

    >>> from datamodules.tasks import Task
    >>> tasks = [Task("land", ("river", "forest")), Task("scenes", ("beach", "forest"))]
    >>> joint_labels(tasks).columns
    {'land': (0, 1), 'scenes': (2, 3)}
    >>> joint_labels(tasks, by_name=True).columns
    {'land': (0, 1), 'scenes': (2, 1)}
    """
    names: dict[tuple[str, str], int] = {}
    columns: dict[str, tuple[int, ...]] = {}
    first: dict[str, Any] = {}
    for task in tasks:
        shared = task.label_set is not None
        if shared and set(first.setdefault(task.label_set, task).class_names) != set(task.class_names):
            raise SheetbendError(
                f"tasks {first[task.label_set].name} and {task.name} share the label set {task.label_set!r} but have "
                "different class names; give them the same classes, or no common label set"
            )
        # A task may have the name of a label set; the mark keeps them apart.
        owner = "all" if by_name else task.label_set if shared else f"task {task.name}"
        columns[task.name] = tuple(names.setdefault((owner, name), len(names)) for name in task.class_names)
    return JointLabels(tuple(names), columns)


def joint_label_space(task_names: Sequence[str], by_name: bool = False) -> dict[str, tuple[int, ...]]:
    """Return, for each of the published vision tasks, the joint index of each of its classes.

    The eight tasks of KnOTS (Stoica et al., ICLR 2025, arXiv 2410.19735) have 748 joint classes, MNIST and SVHN
    sharing the ten digits; ``by_name`` joins equal names too, which leaves 736.

    Args:
        task_names: names out of `datamodules.vision_tasks.VISION_TASKS`, in the order of the joint space.
        by_name: classes of one name are one class, whichever task they are from.

    Raises:
        SheetbendError: a name is no vision task, or there is one bare name in the place of a list.
    """
    from datamodules.vision_tasks import VISION_TASKS  # its tables of names are read only where they are needed

    check_listed(task_names, "task_names")
    for name in task_names:
        if name not in VISION_TASKS:
            guess = did_you_mean(name, list(VISION_TASKS))
            raise SheetbendError(f"unknown task {name!r}; known tasks: {', '.join(VISION_TASKS)}{guess}")
    return joint_labels([VISION_TASKS[name].task for name in task_names], by_name).columns
