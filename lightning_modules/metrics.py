"""Metrics of every (variant, task), filled batch by batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.scores import Score

JOINT_K = (1, 3, 5)


class Evaluator:
    """Accuracy over a task's own classes, and Hits@k over the classes of all tasks, for each variant.

    Args:
        class_counts: number of classes of each task.
        joint_columns: for each task, the joint class index of each of its classes, (C,) int64; none where tasks
            share no label space.
        joint_count: number of joint classes.
    """

    def __init__(
        self,
        class_counts: dict[str, int],
        joint_columns: dict[str, Sequence[int]] | None = None,
        joint_count: int = 0,
    ):
        self.class_counts = class_counts
        self.joint_columns = joint_columns
        self.joint_count = joint_count
        self._metrics: dict[tuple[str, str, str], MulticlassAccuracy] = {}
        self._seen: dict[tuple[str, str], int] = {}

    def reset(self) -> None:
        """Forget everything measured."""
        self._metrics.clear()
        self._seen.clear()

    @torch.no_grad()
    def update(self, variant: str, task: str, logits: Tensor, joint_logits: Tensor | None, labels: Tensor) -> None:
        """Count one batch.

        Args:
            variant: name of the weights that gave the logits.
            task: name of the task that the batch came from.
            logits: (N, C) over the task's own classes.
            joint_logits: (N, J) over all classes, or none.
            labels: (N,) int64 indices of the task's own classes.
        """
        self._metric(variant, task, "accuracy", self.class_counts[task], 1, logits).update(logits, labels)
        if joint_logits is not None:
            joint_labels = torch.as_tensor(self.joint_columns[task], device=labels.device)[labels]
            for k in JOINT_K:
                if k < self.joint_count:
                    metric = self._metric(variant, task, f"joint_hits@{k}", self.joint_count, k, joint_logits)
                    metric.update(joint_logits, joint_labels)
        self._seen[variant, task] = self._seen.get((variant, task), 0) + len(labels)

    def _metric(self, variant: str, task: str, name: str, classes: int, k: int, like: Tensor) -> MulticlassAccuracy:
        key = (variant, task, name)
        if key not in self._metrics:
            metric = MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False)
            self._metrics[key] = metric.to(like.device)
        return self._metrics[key]

    def scores(self) -> list[Score]:
        """Return what was measured, in the order in which it first came up; joint metrics over all examples last."""
        scores = [
            Score(variant, task, name, float(metric.compute()), self._seen[variant, task])
            for (variant, task, name), metric in self._metrics.items()
        ]
        pooled: dict[tuple[str, str], tuple[float, int]] = {}
        for score in scores:
            if score.metric.startswith("joint_"):
                hits, count = pooled.get((score.variant, score.metric), (0.0, 0))
                pooled[score.variant, score.metric] = (hits + score.value * score.count, count + score.count)
        return scores + [
            Score(variant, "all", name, hits / count, count) for (variant, name), (hits, count) in pooled.items()
        ]
