"""Accuracy against the rank of the adapters: one run a rank, of which finished ones are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.analysis_plots import rank_plot
from callbacks.results import Results, counted, csv_text
from launch.analysing.output import Finding
from launch.analysing.settings import Analysis
from launch.commands.screen import say, table
from launch.series import RESULTS, Entry, run_series
from mergers import SheetbendError

# Sections of other commands, which a fit passes over.
_ELSEWHERE = ("analysis", "search", "adaptation")


def entry_of(rank: int, folder: Path) -> Entry:
    """Return the fit of one rank, with alpha = rank as in the KnOTS paper.

    Args:
        rank: of all adapters.
        folder: of the analysis, which the new run goes below.
    """
    settings = {
        "model.init_args.lora.r": rank,
        "model.init_args.lora.alpha": rank,
        "model.init_args.adapters": None,  # those of another rank
        "test_after_fit": True,
        **dict.fromkeys(_ELSEWHERE),
    }
    return Entry(f"rank {rank}", folder / f"rank-{rank}", settings)


def check(settings: Analysis, tasks: Sequence[str]) -> None:
    """Raise `SheetbendError` for runs that have not been tested, or are of other tasks, before any rank is fitted."""
    for rank, folder in settings.runs.items():
        if not (Path(folder) / RESULTS).is_file():
            raise SheetbendError(
                f"analysis.runs: {folder}, of rank {rank}, has no {RESULTS}; give the folder of a run that was tested"
            )
        _read(Path(folder), tasks)


def analyse(
    settings: Analysis, config: Mapping[str, Any], tasks: Sequence[str], folder: Path, overwrite: bool
) -> Finding:
    """Fit and test adapters of every rank that is not finished yet, and compare.

    The largest rank is first, so that one that the model or memory has no room for is known at once.

    Args:
        settings: names ranks and runs.
        config: of the analysis, plain values.
        tasks: names of the tasks.
        folder: of this analysis, which holds a run a rank.
        overwrite: whether ranks that are finished are fitted again.
    """
    ranks = sorted(set(settings.ranks) - set(settings.runs), reverse=True)
    epochs = config["trainer"].get("max_epochs")
    each = f" of up to {counted(epochs, 'epoch')}" if epochs and epochs > 0 else ""
    there = f"; read as they are: {', '.join(map(str, sorted(settings.runs)))}" if settings.runs else ""
    fits = f"a fit{each} for rank {', '.join(map(str, ranks))}" if ranks else "nothing to fit"
    say(f"analysis rank: {fits}, on {counted(len(tasks), 'task')}{there}")
    entries = [entry_of(rank, folder) for rank in ranks]
    done = run_series("fit", {**config, "overwrite": overwrite}, entries, folder) if entries else []
    folders = {rank: one.folder for rank, one in zip(ranks, done, strict=True)}
    folders |= {rank: Path(own) for rank, own in settings.runs.items()}
    found = {rank: _read(folders[rank], tasks) for rank in sorted(folders)}
    return finding(found)


def _read(run: Path, tasks: Sequence[str]) -> Results:
    path = run / RESULTS
    found = Results.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if sorted(found.tasks) != sorted(tasks):
        raise SheetbendError(
            f"{path} is of the tasks {', '.join(found.tasks)}, and this analysis of {', '.join(tasks)}; give runs of "
            "the same tasks"
        )
    return found


def finding(found: Mapping[int, Results]) -> Finding:
    """Put together what is kept and shown.

    Args:
        found: by rank, ascending.
    """
    first = next(iter(found.values()))
    variants = list(dict.fromkeys(name for results in found.values() for name in results.variants))
    mean = {name: [(rank, results.mean_value(name)) for rank, results in found.items()] for name in variants}
    share = {name: [(rank, results.mean_normalised(name)) for rank, results in found.items()] for name in variants}
    curves = {
        f"test {first.measure} (%), mean over tasks": _known(mean),
        "% of finetuned of that rank, mean over tasks": {
            name: points for name, points in _known(share).items() if name != "finetuned"
        },
    }
    shown = table("variant", *(f"rank {rank}" for rank in found))
    for name in variants:
        shown.add_row(name, *(_cell(mean[name][at][1], share[name][at][1]) for at in range(len(found))))
    rows = [
        (rank, name, task, metric, value)
        for rank, results in found.items()
        for name in results.variants
        for task, metric, value in _values(results, name)
        if value is not None
    ]
    return Finding(
        "rank",
        {"rank.csv": csv_text(("rank", "variant", "task", "metric", "value"), rows)},
        rank_plot({words: own for words, own in curves.items() if own}),
        {
            name: {
                "rank/mean": [point for point in mean[name] if point[1] is not None],
                "rank/normalised": [point for point in share[name] if point[1] is not None],
            }
            for name in variants
        },
        f"Test {first.measure} in %, mean over tasks, and in brackets the mean of what is left of finetuned, by rank",
        shown,
    )


def _known(curves: Mapping[str, Sequence[tuple[int, float | None]]]) -> dict[str, list[tuple[int, float]]]:
    found = {name: [(rank, value) for rank, value in points if value is not None] for name, points in curves.items()}
    return {name: points for name, points in found.items() if points}


def _values(results: Results, name: str) -> list[tuple[str, str | None, float | None]]:
    each = [(task, results.metric(task), results.value(name, task)) for task in results.tasks]
    each += [(task, "normalised", results.normalised(name, task)) for task in results.tasks]
    return [*each, ("mean", results.measure, results.mean_value(name)),
            ("mean", "normalised", results.mean_normalised(name))]  # fmt: skip


def _cell(value: float | None, share: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + (f" ({100 * share:.1f})" if share is not None else "")
