"""Numbers that papers have published, beside those that were measured where the setting is the same."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import mergers
from launch.reporting.document import Cell, Table, escaped, table, words
from launch.reporting.groups import MEAN, NORMALISED, Group, Measure, hits
from launch.reporting.runs import Run
from lightning_modules import Adaptation
from mergers import Merger, SheetbendError

SECOND_HAND = "†"
_STEPS = ("space", "method", "finish")
# What of an adaptation changes nothing about its result.
_FREE = ("name", "look_every")


def published_table(group: Group) -> tuple[Table, str] | None:
    """Return a row a published number whose setting is that of the group, and what its marks mean; none where none is.

    Backbone, tasks, adapters and the settings of the merge must agree; what merges are called is of no matter.
    """
    rows: list[list[Cell]] = []
    notes: dict[str, None] = {}
    second_hand = False
    for entry in tables():
        found = _of_table(group, entry)
        if not any(variant in group.merged for _, variant, _ in found):  # references alone are no merge of the paper
            continue
        for row, variant, cells in found:
            rows += cells
            second_hand |= bool(row.get("second_hand"))
            if "note" in row:
                notes[f"{escaped(variant)}: {row['note']}."] = None
    if not rows:
        return None
    said = [
        "Shown where backbone, tasks, the adapters' rank and modules, and the merge's settings are those of the paper; "
        "how adapters were trained, and the examples of the splits, may differ."
    ]
    said += [f"{SECOND_HAND}: read in notes on a paper, not in the paper itself; check before quoting."] * second_hand
    header = ["variant", "number", "paper", "measured", "published"]
    caption = f"{group.label}: published numbers of the same setting, in %"
    return table(caption, header, rows, 3), " ".join([*said, *notes])


def _of_table(group: Group, entry: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, list[list[Cell]]]]:
    """Return the rows of a published table that the group has measured: row, variant, and the cells to show."""
    if not agrees(group.runs[0], entry):
        return []
    pairs = ((row, variant) for row in entry["rows"] for variant in matching(group, row["merge"]))
    found = ((row, name, list(_rows(group, row, name, row.get("paper", entry["paper"])))) for row, name in pairs)
    return [each for each in found if each[2]]


@cache
def tables() -> list[dict[str, Any]]:
    """Return the published tables; see the file's own words on what they mean."""
    text = files("launch.reporting").joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)["tables"]


def _rows(group: Group, row: Mapping[str, Any], variant: str, paper: str) -> Iterator[list[Cell]]:
    for measure, heading, value in _numbers(row):
        found = group.spread(measure, variant)
        if found is None:
            continue
        mark = SECOND_HAND if row.get("second_hand") else ""
        yield [*words(variant, heading, paper), Cell(f"{found}"), Cell(f"{value:g}", mark=mark)]


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[Measure, str, float]]:
    """Yield what a row tells: how it is measured, what it is called, its value."""
    if "normalised" in row:
        yield NORMALISED, "norm. mean", row["normalised"]
    if "mean" in row:
        yield MEAN, "mean", row["mean"]
    for task, value in row.get("tasks", {}).items():
        yield Measure(task, lambda results, name, t=task: results.value(name, t)), task, value
    for task, value in row.get("tasks_normalised", {}).items():
        yield Measure(task, lambda results, name, t=task: results.normalised(name, t)), f"{task}, normalised", value
    for k, value in row.get("hits", {}).items():
        yield hits(int(k)), f"joint hits@{k}", value


def agrees(run: Run, entry: Mapping[str, Any]) -> bool:
    """Return whether a run has the backbone, the tasks and the adapters of a published table."""
    same = run.option("model.backbone") == entry["backbone"] and set(run.results.tasks) == set(entry["tasks"])
    return same and run.results.split == "test" and _adapters_agree(run, entry)


def _adapters_agree(run: Run, entry: Mapping[str, Any]) -> bool:
    source = run.option("model.adapters")
    tasks = run.results.tasks
    if isinstance(source, Mapping):
        sources = {task: str(source[task]) for task in tasks if task in source}
    else:
        sources = {} if source is None else {task: str(source).replace("{task}", task) for task in tasks}
    if source is not None and len(sources) == len(tasks):
        if all(re.match(entry["adapters"], one) for one in sources.values()):
            return True
        folders = [Path(one) for one in sources.values()]
    else:
        folders = [run.folder / "adapters" / task for task in tasks]
    if "lora" not in entry:
        return False
    on_disk = [_lora_on_disk(folder) for folder in folders]
    if source is None and not any(on_disk):  # a run whose adapters have been moved says what it trained
        on_disk = [run.option("model.lora")]
    return all(_same_lora(found, entry["lora"]) for found in on_disk)


def _lora_on_disk(folder: Path) -> Any:
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return {"r": found["r"], "alpha": found["lora_alpha"], "target_modules": found["target_modules"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same_lora(found: Any, expected: Mapping[str, Any]) -> bool:
    if not isinstance(found, Mapping) or not isinstance(found.get("target_modules"), list):
        return False
    modules = sorted(found["target_modules"]) == sorted(expected["target_modules"])
    return modules and found.get("r") == expected["r"] and found.get("alpha") == expected["alpha"]


def matching(group: Group, merge: str | Mapping[str, Any]) -> list[str]:
    """Return the variants that are a published merge, or the reference of that name."""
    if isinstance(merge, str):
        return [merge] if merge in group.variants else []
    if "adaptation" in merge:
        learned = [name for name in group.merged if group.kind(name) == "learned"]
        return [name for name in learned if all(_same_adaptation(r, name, merge["adaptation"]) for r in group.runs)]
    described = str(merger_of(merge))
    return [name for name in group.merged if not group.uneven(name) and group.description(name) == described]


def merger_of(merge: Mapping[str, Any]) -> Merger:
    """Return the merge that a row names.

    >>> str(merger_of({"space": "knots", "method": {"name": "Ties", "density": 0.3}, "coefficients": 0.6}))
    'Ties(density=0.3), in KnOTS space, coefficient 0.6'
    """
    steps = {name: _step(merge[name]) for name in _STEPS if name in merge}
    transforms = [_step(step) for step in merge.get("transforms", [])]
    return Merger(**steps, transforms=transforms, coefficients=merge.get("coefficients", 1.0))


def _step(step: str | Mapping[str, Any]) -> Any:
    if isinstance(step, str):
        return step
    return getattr(mergers, step["name"])(**{name: value for name, value in step.items() if name != "name"})


def _same_adaptation(run: Run, variant: str, expected: Mapping[str, Any]) -> bool:
    given = run.source(variant).config.get("adaptation")
    if not isinstance(given, Mapping):
        return False
    known = {field.name for field in fields(Adaptation)}
    try:
        settings = Adaptation(**{name: value for name, value in given.items() if name in known})
        return _decisive(settings) == _decisive(Adaptation(**expected))
    except (SheetbendError, TypeError):
        return False


def _decisive(settings: Adaptation) -> dict[str, Any]:
    found = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in _FREE}
    resolved = {"coefficient": settings.first_coefficient, "rank_ratio": settings.first_ratio}
    return found | resolved | {"betas": tuple(settings.betas)}
