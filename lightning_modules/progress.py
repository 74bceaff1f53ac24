"""How far each task has come: its own step count, learning rate, early stop and best adapter."""

import math
from dataclasses import dataclass


@dataclass
class TaskProgress:
    """The training state of one task.

    Attributes:
        batches: training batches seen.
        steps: optimiser steps taken.
        best: best validation score so far, a fraction or a correlation; -2 before the first validation.
        best_batches: training batches seen when the best was measured.
        waited: validations since the best one.
        finished: whether the task has stopped early.
    """

    batches: int = 0
    steps: int = 0
    best: float = -2.0
    best_batches: int = 0
    waited: int = 0
    finished: bool = False

    def record(self, score: float, min_delta: float, patience: int | None) -> bool:
        """Note one validation; return whether it is the best so far.

        The best adapter is the one of the highest score, the earlier of two equals. A gain below ``min_delta``
        still counts as waiting. The task is finished after ``patience`` validations without such a gain.
        """
        improved = score > self.best
        self.waited = 0 if score >= self.best + min_delta and improved else self.waited + 1
        if improved:
            self.best, self.best_batches = score, self.batches
        self.finished = patience is not None and self.waited >= patience
        return improved


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``total``.

    It rises linearly over ``warmup`` steps, then falls to zero along half a cosine.

    >>> [round(warmup_cosine(step, total=6, warmup=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def warmup_linear(step: int, total: int, warmup: int) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``total``: a linear rise, then a linear fall.

    >>> [round(warmup_linear(step, total=6, warmup=2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def warmup_constant(step: int, total: int, warmup: int) -> float:
    """Return the factor on the learning rate at ``step`` (0-based) of ``total``: a linear rise, then one.

    >>> [warmup_constant(step, total=4, warmup=2) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    return (step + 1) / warmup if step < warmup else 1.0


SCHEDULES = {"cosine": warmup_cosine, "linear": warmup_linear, "constant": warmup_constant}


def steps_of_each(steps_per_epoch: dict[str, int], max_epochs: int, max_steps: int) -> dict[str, int]:
    """Return how many optimiser steps each task takes when tasks take turns.

    Args:
        steps_per_epoch: optimiser steps of each task in one epoch.
        max_epochs: epochs, or -1 for no limit.
        max_steps: optimiser steps of all tasks together, or -1 for no limit.

    >>> steps_of_each({"a": 3, "b": 1}, max_epochs=2, max_steps=-1)
    {'a': 6, 'b': 2}
    >>> steps_of_each({"a": 3, "b": 1}, max_epochs=-1, max_steps=6)
    {'a': 4, 'b': 2}
    """
    epoch = sum(steps_per_epoch.values())
    if epoch == 0 or (max_epochs == -1 and max_steps == -1):
        return dict.fromkeys(steps_per_epoch, 0)
    budget = max_steps if max_steps != -1 else max_epochs * epoch
    if max_epochs != -1:
        budget = min(budget, max_epochs * epoch)
    whole, left = divmod(budget, epoch)
    steps = {task: whole * count for task, count in steps_per_epoch.items()}
    for turn in range(max(steps_per_epoch.values())):
        for task, count in steps_per_epoch.items():
            if turn < count and left > 0:
                steps[task] += 1
                left -= 1
    return steps
