"""The pictures of a report: drawn anew over all seeds, and those that runs have left."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from callbacks import plots
from callbacks.adaptation_plots import COEFFICIENTS_PICTURE, KEPT_PICTURE
from callbacks.curves import Curves
from callbacks.heatmap import MOST_BARS, each_task
from launch.reporting.document import Picture, plain
from launch.reporting.groups import NORMALISED, Group
from launch.reporting.runs import Run

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 3_000_000
_MOST_FOUND = 24
_FOUND = {KEPT_PICTURE: "directions that are kept, per layer and task", COEFFICIENTS_PICTURE: "learned coefficients"}


def file_name(*texts: str) -> str:
    """Return a name for a picture's file.

    >>> file_name("rank 4/lora", "bars")
    'rank-4-lora_bars.png'
    """
    return "_".join(re.sub(r"[^A-Za-z0-9.+_]+", "-", text).strip("-.") or "run" for text in texts) + ".png"


def results_pictures(group: Group, prefix: tuple[str, ...]) -> list[Picture]:
    """Return bars or a map of colours per task, and normalised means as bars; whiskers are over seeds."""
    runs = [run.results.without(group.starts.values()) for run in group.runs]
    over = "" if len(runs) == 1 else f"; bars are means of {len(runs)} seeds, whiskers their standard deviation"
    about = f"{plain(group.label)}: {group.first.measure}"
    best = group.ranking(group.headline)
    by = "share of finetuned" if group.headline is NORMALISED else "mean"
    told = f" The best merge by {by} is {plain(best[0])}; the table has the numbers." if best else ""
    caption = f"{about} of every variant on every task{over}"
    if len(runs[0].merged) > MOST_BARS:
        seeds = "" if len(runs) == 1 else f"; means of {len(runs)} seeds"
        caption = f"{about} of every variant on every task, merges from the best to the worst{seeds}"
    found = [Picture(file_name(*prefix, "bars"), caption, f"{caption}.{told}", plots.png(each_task(*runs)))]
    if any(all(run.mean_normalised(name) is not None for run in runs) for name in runs[0].variants):
        caption = f"{about} as a share of finetuned, mean over tasks{over}"
        drawn = plots.png(plots.normalised(*runs))
        found.append(Picture(file_name(*prefix, "normalised"), caption, f"{caption}.{told}", drawn))
    return found


def curves_pictures(group: Group, prefix: tuple[str, ...]) -> list[Picture]:
    """Return the curves over training, with bands over seeds, and those of adaptations in the runs' folders."""
    found = []
    histories = [run.history for run in group.runs if len(run.history.steps) > 1]
    if histories:
        adapts = group.runs[0].kind == "learned"
        found.append(_curves(group, histories, adapts, "curves", prefix, "adaptation" if adapts else "training"))
    for name in dict.fromkeys(name for run in group.runs for name in run.origins if group.kind(name) == "learned"):
        parts = [run.origins[name] for run in group.runs if name in run.origins]
        if not all(len(part.history.steps) > 1 for part in parts):
            continue
        own = [part.history for part in parts]
        found.append(_curves(group, own, True, f"curves_{name}", prefix, f"the adaptation {plain(name)}"))
    return found


def _curves(
    group: Group, histories: Sequence[Curves], adapts: bool, name: str, prefix: tuple[str, ...], over: str
) -> Picture:
    first, *others = histories
    band = "" if not others else f"; lines are means of {len(histories)} seeds, bands their standard deviation"
    caption = f"{plain(group.label)}: validation {first.measure} over {over}{band}"
    drawn = plots.png(plots.curves(first, adapts, others))
    return Picture(file_name(*prefix, name), caption, f"{caption}.", drawn)


def found_pictures(group: Group, prefix: tuple[str, ...]) -> tuple[list[Picture], str]:
    """Return the pictures that the first run's adaptations, searches and analyses have left, and what is left out."""
    found: list[Picture] = []
    left = 0
    for run, path, words in _left_by(group.runs[0]):
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
        if not content.startswith(_PNG) or len(content) < 24:
            continue
        if len(found) == _MOST_FOUND:
            left += 1
            continue
        seed = f" (seed {run.seed})" if group.seeds > 1 and run.seed is not None else ""
        caption = f"{plain(run.name)}: {words}{seed}"
        name = file_name(*prefix, run.name, path.stem)
        found.append(Picture(name, caption, f"{caption}.", content))
    return found, f"{left} more pictures stand in the folders of the runs." if left else ""


def _left_by(run: Run) -> Iterator[tuple[Run, Path, str]]:
    parts = {part.folder: part for part in run.origins.values()}
    for part in [*([run] if run.kind != "run" else []), *parts.values()]:
        for path in sorted((part.folder / "plots").glob("*.png")):
            merge = path.stem.removeprefix("search_")
            if path.name in _FOUND:
                yield part, path, _FOUND[path.name]
            elif merge != path.stem:
                yield part, path, f"what each setting of {plain(merge)} does"
    for path in sorted(run.folder.glob("analyses/**/*.png")):
        yield run, path, f"analysis {plain(path.stem.replace('_', ' '))}"
