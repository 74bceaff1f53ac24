"""One label space for all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergers import SheetbendError


@dataclass(frozen=True)
class JointLabels:
    """The classes of all tasks in one list.

    Attributes:
        names: (owner, class name) of each joint class; the owner is a label set that tasks share, or a task.
        columns: for each task, the joint index of each of its classes, in the task's own order.
    """

    names: tuple[tuple[str, str], ...]
    columns: dict[str, tuple[int, ...]]


def joint_labels(tasks: Sequence[Any]) -> JointLabels:
    """Join the classes of ``tasks``: those of one ``label_set`` share theirs, all others keep their own.

    Args:
        tasks: objects with ``name``, ``class_names`` and ``label_set`` (none: its own).

    Raises:
        SheetbendError: tasks that share a label set have different classes.
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
        owner = task.label_set if shared else f"task {task.name}"
        columns[task.name] = tuple(names.setdefault((owner, name), len(names)) for name in task.class_names)
    return JointLabels(tuple(names), columns)
