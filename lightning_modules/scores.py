"""One measured number of one variant on one task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        variant: the weights under test: ``pretrained``, ``finetuned`` or the name of a merger.
        task: the task whose examples were counted, or ``all`` for every example of every task.
        metric: ``accuracy`` (the task's own labels) or ``joint_hits@k`` (the labels of all tasks together).
        value: a fraction in [0, 1].
        count: how many examples it was measured on.
    """

    variant: str
    task: str
    metric: str
    value: float
    count: int
