"""One measured number of one variant on one task."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One measured number.

    Attributes:
        variant: the weights under test: ``pretrained``, ``finetuned`` or the name of a merger.
        task: the task whose examples were counted, or ``all`` for every example of every task.
        metric: ``accuracy`` (the task's own labels) or another metric of the task, or ``joint_hits@k`` (the labels of
            all tasks together; ``joint_by_name_hits@k`` where equal names are one label).
        value: a fraction in [0, 1]; correlations in [-1, 1].
        count: how many examples it was measured on.
    """

    variant: str
    task: str
    metric: str
    value: float
    count: int

    @property
    def joint(self) -> bool:
        """Whether the labels of all tasks compete."""
        return self.metric.startswith("joint_")


def headlines(scores: Iterable[Score]) -> dict[str, str]:
    """Return the metric that stands for each task: the first that was measured among the task's own labels.

    >>> headlines([Score("finetuned", "cola", "matthews", 0.5, 9), Score("finetuned", "cola", "accuracy", 0.7, 9)])
    {'cola': 'matthews'}
    """
    found: dict[str, str] = {}
    for score in scores:
        if not score.joint:
            found.setdefault(score.task, score.metric)
    return found


def headline_scores(scores: Iterable[Score]) -> list[Score]:
    """Return those of ``scores`` whose metric stands for its task, in their order."""
    scores = list(scores)
    metric = headlines(scores)
    return [score for score in scores if not score.joint and score.metric == metric[score.task]]
