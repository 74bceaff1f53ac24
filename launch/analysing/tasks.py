"""Accuracy against the number of merged tasks: every subset of them merged, and tested on its own tasks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from callbacks.analysis_plots import tasks_plot
from callbacks.results import counted, csv_text
from callbacks.statistics import Spread
from launch.analysing.measured import JOINT, Measured, finetuned_of
from launch.analysing.output import Finding
from launch.commands.screen import say, size, table
from launch.sweeps import Sweeps
from lightning_modules import Score, Variant
from lightning_modules.variants import PRETRAINED
from mergers import Merger
from mergers.seeding import derive_generator

Subset = tuple[str, ...]
# What each merge of each subset scored on its own tasks; pretrained is among the merges.
Found = Mapping[tuple[str, Subset], Measured]
# Means over subsets by the number of their tasks, by (measure, merge).
Curves = Mapping[tuple[str, str], Mapping[int, Spread]]


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


def plan(split: str, merger_count: int, chosen: Sequence[Subset], bytes_each: int, room: int) -> str:
    """Return what is ahead, in words."""
    merges = len(chosen) * merger_count
    passes = sum(map(len, chosen)) * merger_count
    return (
        f"analysis tasks: {counted(len(chosen), 'subset')} of 2 to {max(map(len, chosen))} tasks x "
        f"{counted(merger_count, 'merge')} = {counted(merges, 'merged model')} ({size(bytes_each)} each at "
        f"most), {counted(passes, 'pass', 'passes')} over a task's {split} data in "
        f"{counted(1 + -(-merges // room), 'sweep')}"
    )


def analyse(sweeps: Sweeps, mergers: Mapping[str, Merger], samples: int | None, seed: int) -> Finding:
    """Merge subsets of the tasks in every way, and test each on its own tasks.

    Args:
        sweeps: of the split to test on.
        mergers: by name, at least one.
        samples: at most so many subsets of each size; None: all.
        seed: of the choice of subsets.

    Raises:
        SheetbendError: the finetuned value of a task is not above 0.
    """
    adapters = {adapter.name: adapter for adapter in sweeps.adapters}
    tasks = list(adapters)
    chosen = subsets(tasks, samples, seed)
    bytes_each = max(map(sweeps.bytes_of, mergers.values()))
    room = sweeps.room(bytes_each)
    say(plan(sweeps.split, len(mergers), chosen, bytes_each, room))
    references = sweeps.references()
    finetuned = finetuned_of(references)
    # The pretrained joint score is among the labels of all tasks, not of a subset.
    before = [score for score in references if score.variant == PRETRAINED and not score.joint]

    def measured(scores: Sequence[Score], subset: Subset) -> Measured:
        return Measured.of(scores, {task: finetuned[task] for task in subset})

    def variant(job: tuple[str, Subset]) -> Variant:
        name, subset = job
        merged = cut(mergers[name], subset, tasks).merge([adapters[task] for task in subset])
        return replace(sweeps.model.variant(f"{name} of {', '.join(subset)}", merged), tasks=subset)

    jobs = [(name, subset) for subset in chosen for name in mergers]
    found = {(PRETRAINED, subset): measured(before, subset) for subset in chosen}
    found |= {job: measured(scores, job[1]) for job, scores in sweeps.measure(jobs, variant, room)}
    return finding(found, list(mergers), sweeps.split)


def means(found: Found) -> Curves:
    """Return the means over subsets by the number of tasks."""
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (merge, subset), one in found.items():
        for measure, value in (("normalised", one.mean_normalised), (JOINT, one.joint)):
            if value is not None:
                values.setdefault((measure, merge), {}).setdefault(len(subset), []).append(value)
    return {
        key: {count: Spread(tuple(numbers)) for count, numbers in sorted(by_count.items())}
        for key, by_count in values.items()
    }


def finding(found: Found, merges: Sequence[str], split: str) -> Finding:
    """Put together what is kept and shown."""
    curves = means(found)
    subsets_of = {count: spread.count for count, spread in curves["normalised", PRETRAINED].items()}
    shown = table("merge", *(f"{count} tasks\n({counted(number, 'subset')})" for count, number in subsets_of.items()))
    for merge in (PRETRAINED, *merges):
        shown.add_row(merge, *map(_cell, curves["normalised", merge].values()))
    each = [(merge, len(subset), "+".join(subset), *row)
            for (merge, subset), one in found.items() for row in one.rows()]  # fmt: skip
    summed = [(merge, count, measure, spread.count, spread.mean, *_ends(spread))
              for (measure, merge), own in curves.items() for count, spread in own.items()]  # fmt: skip
    drawn = {key: [(count, one.mean, one.half) for count, one in own.items()] for key, own in curves.items()}
    events: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (measure, merge), own in curves.items():
        events.setdefault(merge, {})[f"tasks/{measure}"] = [(count, spread.mean) for count, spread in own.items()]
    return Finding(
        "tasks",
        {
            "tasks.csv": csv_text(("merge", "tasks", "subset", "task", "metric", "value"), each),
            "tasks_mean.csv": csv_text(("merge", "tasks", "metric", "subsets", "mean", "low", "high"), summed),
        },
        tasks_plot(drawn, split),
        events,
        f"Normalised {split} score of merged subsets in %: mean over their tasks, then over subsets ± 95 % interval",
        shown,
    )


def _cell(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f}" + ("" if spread.half is None else f" ± {100 * spread.half:.1f}")


def _ends(spread: Spread) -> tuple[float | None, float | None]:
    return (None, None) if spread.half is None else (spread.mean - spread.half, spread.mean + spread.half)
