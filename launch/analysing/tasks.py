"""Accuracy against the number of merged tasks: every subset of them merged, and tested on its own tasks."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from callbacks.analysis_plots import Point, tasks_plot
from callbacks.results import counted, csv_text
from launch.analysing.intervals import mean_and_interval
from launch.analysing.output import Finding, say
from launch.analysing.sweep import Sweeps, by_task
from launch.commands.screen import size, table
from lightning_modules import Score, Variant
from lightning_modules.variants import PRETRAINED
from mergers import Merger
from mergers.seeding import derive_generator

Subset = tuple[str, ...]
JOINT = "joint_hits@1"


@dataclass(frozen=True)
class Merged:
    """One merge of some tasks, and what was measured on these.

    Attributes:
        merge: its name; pretrained and finetuned are among them.
        subset: the tasks that were merged.
        metrics: of each task, the metric that stands for it.
        values: of each task, in that metric.
        normalised: of each task, divided by the finetuned value.
        joint: hits@1 where the labels of the subset's tasks compete, over all their examples; None where tasks share
            no label space.
    """

    merge: str
    subset: Subset
    metrics: Mapping[str, str]
    values: Mapping[str, float]
    normalised: Mapping[str, float]
    joint: float | None = None

    @property
    def mean_normalised(self) -> float:
        """Mean over the subset's tasks."""
        return math.fsum(self.normalised.values()) / len(self.normalised)


def subsets(tasks: Sequence[str], samples: int | None, seed: int) -> list[Subset]:
    """Return subsets of at least two tasks, by size: all, or a sample of ``samples`` where there are more.

    >>> subsets(["a", "b", "c"], None, seed=0)
    [('a', 'b'), ('a', 'c'), ('b', 'c'), ('a', 'b', 'c')]
    """
    found: list[Subset] = []
    for count in range(2, len(tasks) + 1):
        if samples is None or math.comb(len(tasks), count) <= samples:
            found += itertools.combinations(tasks, count)
            continue
        generator, drawn = derive_generator(seed, "subsets", count), set()
        while len(drawn) < samples:
            drawn.add(tuple(torch.randperm(len(tasks), generator=generator)[:count].sort().values.tolist()))
        found += [tuple(tasks[index] for index in one) for one in sorted(drawn)]
    return found


def cut(merger: Merger, subset: Subset, tasks: Sequence[str]) -> Merger:
    """Return the merger for a subset of the tasks: of coefficients per task, those of the subset."""
    given = merger.coefficients
    if isinstance(given, dict):
        return replace(merger, coefficients={task: given[task] for task in subset})
    if isinstance(given, list | tuple):
        return replace(merger, coefficients=[given[list(tasks).index(task)] for task in subset])
    return merger


def plan(sweeps: Sweeps, mergers: Mapping[str, Merger], chosen: Sequence[Subset]) -> str:
    """Say what is ahead."""
    merges = len(chosen) * len(mergers)
    passes = sum(map(len, chosen)) * len(mergers)
    return (
        f"analysis tasks: {counted(len(chosen), 'subset')} of 2 to {max(map(len, chosen))} tasks x "
        f"{counted(len(mergers), 'merge')} = {counted(merges, 'merged model')} ({size(sweeps.bytes_each)} each at "
        f"most), {counted(passes, 'pass', 'passes')} over a task's {sweeps.split} data in "
        f"{counted(1 + -(-merges // sweeps.room()), 'sweep')}"
    )


def analyse(sweeps: Sweeps, mergers: Mapping[str, Merger], samples: int | None, seed: int) -> Finding:
    """Merge subsets of the tasks in every way, and test each on its own tasks."""
    adapters = {adapter.name: adapter for adapter in sweeps.adapters}
    tasks = list(adapters)
    chosen = subsets(tasks, samples, seed)
    say(plan(sweeps, mergers, chosen))
    references, finetuned = sweeps.references()
    before = [score for score in references if score.variant == PRETRAINED and not score.joint]
    found = [_merged(PRETRAINED, subset, before, finetuned) for subset in chosen]

    def variant(job: tuple[str, Subset]) -> Variant:
        name, subset = job
        merged = cut(mergers[name], subset, tasks).merge([adapters[task] for task in subset])
        return replace(sweeps.model.variant(f"{name} of {', '.join(subset)}", merged), tasks=subset)

    jobs = [(name, subset) for subset in chosen for name in mergers]
    found += [_merged(*job, scores, finetuned) for job, scores in sweeps.measure(jobs, variant)]
    return finding(found, list(mergers), sweeps.split)


def _merged(merge: str, subset: Subset, scores: Sequence[Score], finetuned: Mapping[str, Score]) -> Merged:
    metrics = {task: finetuned[task].metric for task in subset}
    values = {task: score.value for task, score in by_task(scores, metrics).items()}
    normalised = {task: value / finetuned[task].value for task, value in values.items()}
    joint = next((score.value for score in scores if (score.task, score.metric) == ("all", JOINT)), None)
    return Merged(merge, subset, metrics, values, normalised, joint)


def means(found: Sequence[Merged]) -> dict[tuple[str, str], list[Point]]:
    """Return curves over the number of tasks by (measure, merge): number, mean over subsets, half the interval."""
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in found:
        for measure, value in (("normalised", one.mean_normalised), (JOINT, one.joint)):
            if value is not None:
                values.setdefault((measure, one.merge), {}).setdefault(len(one.subset), []).append(value)
    return {
        key: [(count, *mean_and_interval(numbers)) for count, numbers in sorted(by_count.items())]
        for key, by_count in values.items()
    }


def finding(found: Sequence[Merged], merges: Sequence[str], split: str) -> Finding:
    """Put together what is kept and shown."""
    curves = means(found)
    counts = sorted({len(one.subset) for one in found})
    number = {count: len({one.subset for one in found if len(one.subset) == count}) for count in counts}
    shown = table("merge", *(f"{count} tasks\n({counted(number[count], 'subset')})" for count in counts))
    for merge in (PRETRAINED, *merges):
        points = {count: (mean, half) for count, mean, half in curves["normalised", merge]}
        shown.add_row(merge, *(_cell(*points[count]) for count in counts))
    rows = [(merge, count, measure, number[count], mean, *_ends(mean, half))
            for (measure, merge), points in curves.items() for count, mean, half in points]  # fmt: skip
    return Finding(
        "tasks",
        {
            "tasks.csv": csv_text(("merge", "tasks", "subset", "task", "metric", "value"), _rows(found)),
            "tasks_mean.csv": csv_text(("merge", "tasks", "metric", "subsets", "mean", "low", "high"), rows),
        },
        tasks_plot(curves, split),
        _by_merge(curves),
        f"Normalised {split} score of merged subsets in %: mean over their tasks, then over subsets ± 95 % interval",
        shown,
    )


def _by_merge(curves: Mapping[tuple[str, str], Sequence[Point]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (measure, merge), points in curves.items():
        found.setdefault(merge, {})[f"tasks/{measure}"] = [(count, mean) for count, mean, _ in points]
    return found


def _rows(found: Sequence[Merged]) -> Iterator[tuple[Any, ...]]:
    for one in found:
        start = (one.merge, len(one.subset), "+".join(one.subset))
        for task in one.subset:
            yield (*start, task, one.metrics[task], one.values[task])
            yield (*start, task, "normalised", one.normalised[task])
        yield (*start, "mean", "normalised", one.mean_normalised)
        if one.joint is not None:
            yield (*start, "all", JOINT, one.joint)


def _cell(mean: float, half: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def _ends(mean: float, half: float | None) -> tuple[float | None, float | None]:
    return (None, None) if half is None else (mean - half, mean + half)
