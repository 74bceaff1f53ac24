"""What one merged model scored, and the share of the finetuned scores that this is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_modules import Score
from lightning_modules.scores import headline_scores
from lightning_modules.variants import FINETUNED
from mergers import SheetbendError

JOINT = "joint_hits@1"


@dataclass(frozen=True)
class Measured:
    """The scores of one model on some tasks.

    Attributes:
        scores: of each task, in the metric that stands for it.
        normalised: of each task, divided by the finetuned value.
        joint: hits@1 where the labels of these tasks compete, over all their examples; None where tasks share no label
            space.
    """

    scores: Mapping[str, Score]
    normalised: Mapping[str, float]
    joint: float | None = None

    @classmethod
    def of(cls, scores: Sequence[Score], finetuned: Mapping[str, Score]) -> "Measured":
        """Return what ``scores`` of one variant say.

        Args:
            scores: of one variant, in any metrics.
            finetuned: of each task that is wanted, what the adapters have in the metric that stands for it.
        """
        found = {(score.task, score.metric): score for score in scores}
        own = {task: found[task, one.metric] for task, one in finetuned.items()}
        joint = found.get(("all", JOINT))
        normalised = {task: score.value / finetuned[task].value for task, score in own.items()}
        return cls(own, normalised, None if joint is None else joint.value)

    @property
    def mean(self) -> float:
        """Mean over the tasks."""
        return math.fsum(score.value for score in self.scores.values()) / len(self.scores)

    @property
    def mean_normalised(self) -> float:
        """Mean over the tasks of the normalised values."""
        return math.fsum(self.normalised.values()) / len(self.normalised)

    def rows(self) -> Iterator[tuple[str, str, float]]:
        """Yield task, metric and value of each number."""
        for task, score in self.scores.items():
            yield task, score.metric, score.value
            yield task, "normalised", self.normalised[task]
        yield "mean", "score", self.mean
        yield "mean", "normalised", self.mean_normalised
        if self.joint is not None:
            yield "all", JOINT, self.joint


def finetuned_of(scores: Sequence[Score]) -> dict[str, Score]:
    """Return the finetuned score of each task, by which others are divided.

    Raises:
        SheetbendError: one is not above 0.
    """
    found = {score.task: score for score in headline_scores(scores) if score.variant == FINETUNED}
    for score in found.values():
        if score.value <= 0:
            raise SheetbendError(
                f"task {score.task}: its finetuned {score.metric} is {score.value:g}, by which nothing can be "
                "normalised; leave it out of data.tasks"
            )
    return found
