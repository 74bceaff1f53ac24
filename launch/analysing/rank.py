"""Accuracy against the rank of the adapters: one run a rank, finished ones are kept."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from callbacks.analysis_plots import rank_plot
from callbacks.results import Results, counted, csv_text
from launch import cli
from launch.analysing.output import Finding
from launch.analysing.settings import Analysis
from launch.commands.screen import say, table
from mergers import SheetbendError
from mergers.files import atomic_write

RESULTS = "results.json"
# Sections of other commands, which a fit passes over.
_ELSEWHERE = ("analysis", "search", "adaptation")


def of_rank(config: Mapping[str, Any], rank: int, folder: Path) -> dict[str, Any]:
    """Return the configuration of the fit of one rank, with alpha = rank as in the KnOTS paper.

    Args:
        config: of the analysis, plain values.
        rank: of all adapters.
        folder: of the new run.
    """
    own = {key: copy.deepcopy(value) for key, value in config.items() if key not in _ELSEWHERE}
    arguments = own["model"].setdefault("init_args", {})
    arguments["lora"] = {**(arguments.get("lora") or {}), "r": rank, "alpha": rank}
    arguments["adapters"] = None  # those of another rank
    own["trainer"]["default_root_dir"] = str(folder)
    return {**own, "test_after_fit": True, "overwrite": False}


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

    Args:
        settings: names ranks and runs.
        config: of the analysis, plain values.
        tasks: names of the tasks.
        folder: of this analysis, which holds a run a rank.
        overwrite: whether ranks that are finished are fitted again.
    """
    wanted = {rank: folder / f"rank-{rank}" for rank in settings.ranks if rank not in settings.runs}
    texts = {rank: yaml.safe_dump(of_rank(config, rank, own), sort_keys=False) for rank, own in wanted.items()}
    left = [rank for rank, own in wanted.items() if overwrite or not _finished(own, texts[rank])]
    epochs = config["trainer"].get("max_epochs")
    each = f" of up to {counted(epochs, 'epoch')}" if epochs and epochs > 0 else ""
    there = sorted({*settings.runs, *wanted} - set(left))
    say(
        f"analysis rank: {counted(len(left), 'fit')}{each} on {counted(len(tasks), 'task')}, ranks "
        f"{', '.join(map(str, left)) or 'none'}" + (f"; there already: {', '.join(map(str, there))}" if there else "")
    )
    for rank in left:
        if overwrite and wanted[rank].exists():
            shutil.rmtree(wanted[rank])
        say(f"rank {rank}: {wanted[rank]}")
        _fit(wanted[rank], texts[rank])
    folders = {**wanted, **{rank: Path(own) for rank, own in settings.runs.items()}}
    found = {rank: _read(folders[rank], tasks) for rank in sorted(folders)}
    return finding(found)


def _settings_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.yaml")


def _finished(run: Path, text: str) -> bool:
    """Return whether a run has been tested with these settings."""
    file = _settings_of(run)
    return (run / RESULTS).is_file() and file.is_file() and file.read_text(encoding="utf-8") == text


def _fit(run: Path, text: str) -> None:
    (run / RESULTS).unlink(missing_ok=True)  # of other settings
    with atomic_write(_settings_of(run)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    try:
        cli.main(["fit", "--config", str(_settings_of(run))])
    except SystemExit:
        if not run.exists():  # it was refused
            _settings_of(run).unlink(missing_ok=True)
        raise


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
