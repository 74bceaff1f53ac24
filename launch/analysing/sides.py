"""KnOTS over inputs, updates side by side, against KnOTS over outputs, updates above each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from callbacks.analysis_plots import sides_plot
from callbacks.results import counted, csv_text
from launch.analysing.output import Finding, say
from launch.analysing.sweep import Sweeps, by_task
from launch.analysing.tasks import JOINT
from launch.commands.screen import size, table
from lightning_modules import Score, Variant
from mergers import KnOTS, Merger, SheetbendError
from mergers.spaces.knots import Side

# The paper calls [delta_1 | ... | delta_T] column-wise.
SIDES: Mapping[Side, str] = {"inputs": "column-wise", "outputs": "row-wise"}


@dataclass(frozen=True)
class Measured:
    """One merge over one side.

    Attributes:
        merge: its name.
        side: over which updates were concatenated.
        scores: of each task, what was measured in the metric that stands for it.
        normalised: of each task, divided by the finetuned value.
        joint: hits@1 among the labels of all tasks, over all examples; None where tasks share no label space.
    """

    merge: str
    side: Side
    scores: Mapping[str, Score]
    normalised: Mapping[str, float]
    joint: float | None

    @property
    def mean(self) -> float:
        """Mean over tasks."""
        return math.fsum(score.value for score in self.scores.values()) / len(self.scores)

    @property
    def mean_normalised(self) -> float:
        """Mean over tasks of the normalised values."""
        return math.fsum(self.normalised.values()) / len(self.normalised)


def in_knots(mergers: Mapping[str, Merger]) -> dict[str, Merger]:
    """Return the merges in KnOTS space.

    Raises:
        SheetbendError: there is none.
    """
    found = {name: merger for name, merger in mergers.items() if isinstance(merger.space, KnOTS)}
    if not found:
        raise SheetbendError(
            f"analysis sides compares merges in KnOTS space, and none of {', '.join(mergers)} is; give one with "
            "space: knots"
        )
    return found


def over(merger: Merger, side: Side) -> Merger:
    """Return the merger with updates concatenated over ``side``."""
    return replace(merger, space=replace(merger.space, concatenate=side))


def analyse(sweeps: Sweeps, mergers: Mapping[str, Merger]) -> Finding:
    """Test every merge in KnOTS space over both sides, in as few sweeps as memory allows."""
    jobs = [(name, side) for name in in_knots(mergers) for side in SIDES]
    say(
        f"analysis sides: {counted(len(jobs) // 2, 'merge')} in KnOTS space x 2 sides = "
        f"{counted(len(jobs), 'merged model')} ({size(sweeps.bytes_each)} each at most), "
        f"{counted(1 + -(-len(jobs) // sweeps.room()), 'sweep')} of the {sweeps.split} data"
    )
    finetuned = sweeps.references()[1]

    def variant(job: tuple[str, Side]) -> Variant:
        merged = over(mergers[job[0]], job[1]).merge(sweeps.adapters)
        return sweeps.model.variant(str(merged.merger), merged)

    found = [_measured(*job, scores, finetuned) for job, scores in sweeps.measure(jobs, variant)]
    return finding(found, sweeps.split)


def _measured(merge: str, side: Side, scores: Sequence[Score], finetuned: Mapping[str, Score]) -> Measured:
    values = by_task(scores, {task: score.metric for task, score in finetuned.items()})
    normalised = {task: score.value / finetuned[task].value for task, score in values.items()}
    joint = next((score.value for score in scores if (score.task, score.metric) == ("all", JOINT)), None)
    return Measured(merge, side, values, normalised, joint)


def finding(found: Sequence[Measured], split: str) -> Finding:
    """Put together what is kept and shown."""
    by_key = {(one.merge, one.side): one for one in found}
    merges = list(dict.fromkeys(one.merge for one in found))
    shown = table("merge", "column-wise\nmean", "row-wise\nmean", "column-wise\nnorm. mean", "row-wise\nnorm. mean")
    for merge in merges:
        column, row = (by_key[merge, side] for side in SIDES)
        cells = (column.mean, row.mean, column.mean_normalised, row.mean_normalised)
        shown.add_row(merge, *(f"{100 * value:.1f}" for value in cells))
    return Finding(
        "sides",
        {"sides.csv": csv_text(("merge", "side", "task", "metric", "value"), _rows(found))},
        sides_plot({(one.merge, SIDES[one.side]): one.mean_normalised for one in found}, split),
        {
            f"{one.merge}-{one.side}": {
                "sides/normalised": [(0, one.mean_normalised)],
                "sides/mean": [(0, one.mean)],
                **({} if one.joint is None else {f"sides/{JOINT}": [(0, one.joint)]}),
            }
            for one in found
        },
        f"KnOTS column-wise (over inputs) and row-wise (over outputs): {split} scores in %, mean over tasks",
        shown,
    )


def _rows(found: Sequence[Measured]) -> Iterator[tuple[Any, ...]]:
    for one in found:
        start = (one.merge, one.side)
        for task, score in one.scores.items():
            yield (*start, task, score.metric, score.value)
            yield (*start, task, "normalised", one.normalised[task])
        yield (*start, "mean", "score", one.mean)
        yield (*start, "mean", "normalised", one.mean_normalised)
        if one.joint is not None:
            yield (*start, "all", JOINT, one.joint)
