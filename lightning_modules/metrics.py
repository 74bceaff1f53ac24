"""Metrics of every (variant, task), filled batch by batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, MulticlassMatthewsCorrCoef

from datamodules.label_space import JointLabels
from lightning_modules.scores import Score
from mergers import SheetbendError

JOINT_K = (1, 3, 5, 10)


class Share(Metric):
    """The share of examples that are right.

    To the bit what torchmetrics' micro accuracy gives, which counts every cell of a (N, C) table of each batch; with
    many variants of a small model that takes longer than the forward pass.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), "sum")
        self.add_state("seen", torch.tensor(0), "sum")

    def update(self, right: Tensor) -> None:
        """Count one batch: bool (N,)."""
        self.right = self.right + right.sum()
        self.seen = self.seen + len(right)

    def compute(self) -> Tensor:
        """Return the share, a scalar in [0, 1]."""
        return self.right.float() / self.seen.float()


def found(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return which labels are among the k highest scores, bool (N,).

    Args:
        scores: (N, C).
        labels: (N,) int64.
        k: at least 1; equal scores at the threshold are settled as torchmetrics does.
    """
    if k == 1:
        return scores.argmax(1) == labels
    return (scores.topk(k, dim=1).indices == labels[:, None]).any(1)


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' correlation of predicted and true class.

    0 where all predictions, or all true classes, are one class, as in scikit-learn and GLUE; torchmetrics gives other
    values there for two classes.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int):
        super().__init__(classes, validate_args=False)

    def compute(self) -> Tensor:
        """Return the correlation, a scalar in [-1, 1]."""
        varied = all((self.confmat.sum(dim) > 0).sum() > 1 for dim in (0, 1))
        return super().compute() if varied else torch.zeros(())


def _accuracy_and_f1(classes: int) -> Metric:
    if classes != 2:
        raise SheetbendError(f"metric accuracy_and_f1 is for two classes, the task has {classes}; choose accuracy")
    return (BinaryAccuracy(validate_args=False) + BinaryF1Score(validate_args=False)) / 2


ACCURACY = "accuracy"
# What may stand for a task, made for its number of classes: a metric of predicted and true class, both (N,) int64;
# that of accuracy, of which are equal.
# accuracy_and_f1 is GLUE's mean of both, F1 of class 1.
METRICS: dict[str, Callable[[int], Metric]] = {
    ACCURACY: lambda classes: Share(),
    "matthews": Matthews,
    "accuracy_and_f1": _accuracy_and_f1,
}


class Meter:
    """Metrics by (variant, task, name), with the examples that each has seen.

    The first metric of a task that is not a joint one stands for the task: see `lightning_modules.scores`.
    """

    def __init__(self) -> None:
        self._metrics: dict[tuple[str, str, str], Metric] = {}
        self._seen: dict[tuple[str, str, str], int] = {}

    def reset(self) -> None:
        """Forget everything measured."""
        self._metrics.clear()
        self._seen.clear()

    @torch.no_grad()
    def count(
        self, variant: str, task: str, name: str, make: Callable[[], Metric], values: Sequence[Tensor], size: int
    ) -> None:
        """Give one batch to a metric.

        Args:
            variant: name of the weights under test.
            task: name of the task that the batch came from.
            name: name of the metric in results.
            make: makes the metric where it comes up for the first time.
            values: what its ``update`` takes; the metric lives on the device of the first.
            size: examples in the batch.
        """
        key = (variant, task, name)
        if key not in self._metrics:
            self._metrics[key] = make().to(values[0].device)
        self._metrics[key].update(*values)
        self._seen[key] = self._seen.get(key, 0) + size

    def scores(self) -> list[Score]:
        """Return what was measured, in the order in which it first came up; joint metrics over all examples last."""
        seen = self._gathered()
        scores = [Score(*key, float(metric.compute()), seen[key]) for key, metric in self._metrics.items()]
        pooled: dict[tuple[str, str], tuple[float, int]] = {}
        for score in scores:
            if score.joint:
                hits, count = pooled.get((score.variant, score.metric), (0.0, 0))
                pooled[score.variant, score.metric] = (hits + score.value * score.count, count + score.count)
        return scores + [
            Score(variant, "all", name, hits / count, count) for (variant, name), (hits, count) in pooled.items()
        ]

    def _gathered(self) -> dict[tuple[str, str, str], int]:
        """Return the examples that all processes together have seen; metrics gather their own states."""
        if not self._metrics or not (distributed.is_available() and distributed.is_initialized()):
            return self._seen
        if distributed.get_backend() == "nccl":  # which sends nothing that lies on the CPU, as sums of answers do
            for metric in self._metrics.values():
                metric.to("cuda")
        device = next(iter(self._metrics.values())).device
        total = torch.tensor([self._seen[key] for key in self._metrics], device=device)
        distributed.all_reduce(total)
        return dict(zip(self._metrics, total.tolist(), strict=True))


class Evaluator(Meter):
    """Each task's metric over its own classes, and Hits@k in joint label spaces, for each variant.

    A task with another metric than accuracy has its accuracy measured too.

    Args:
        tasks: objects with ``name``, ``class_names`` and ``metric``.
        joint: joint label spaces by the name they have in metrics: ``joint`` gives ``joint_hits@k``.
    """

    def __init__(self, tasks: Sequence[Any], joint: Mapping[str, JointLabels] | None = None):
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.joint = dict(joint or {})
        for task in tasks:
            if task.metric not in METRICS:
                raise SheetbendError(f"task {task.name}: unknown metric {task.metric!r}; known: {', '.join(METRICS)}")
            METRICS[task.metric](len(task.class_names))

    @torch.no_grad()
    def update(
        self, variant: str, task: str, logits: Tensor | None, joint_logits: Mapping[str, Tensor], labels: Tensor
    ) -> None:
        """Count one batch.

        Args:
            variant: name of the weights that gave the logits.
            task: name of the task that the batch came from.
            logits: (N, C) over the task's own classes; none where a variant is measured in joint spaces alone.
            joint_logits: (N, J) over all classes of each joint space.
            labels: (N,) int64 indices of the task's own classes.
        """
        own = self.tasks[task]
        if logits is not None:
            predicted = logits.argmax(-1)
            for name in dict.fromkeys((own.metric, ACCURACY)):
                make = partial(METRICS[name], len(own.class_names))
                values = (predicted == labels,) if name == ACCURACY else (predicted, labels)
                self.count(variant, task, name, make, values, len(labels))
        for space, values in joint_logits.items():
            joint = self.joint[space]
            joint_labels = torch.as_tensor(joint.columns[task], device=labels.device)[labels]
            for k in JOINT_K:
                if k < len(joint):
                    right = found(values, joint_labels, k)
                    self.count(variant, task, f"{space}_hits@{k}", Share, (right,), len(labels))
