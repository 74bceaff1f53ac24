"""The tables of a report."""

from collections.abc import Sequence
from pathlib import Path

from callbacks.machine import machine_words
from callbacks.report import standard_error
from callbacks.results import BY_NAME, REFERENCES, counted
from callbacks.results_table import METRIC_WORDS
from callbacks.statistics import Spread
from launch.commands.screen import duration
from launch.reporting.document import Cell, Table, plain, table, words
from launch.reporting.groups import Group, Measure, examples_of
from launch.reporting.runs import Run

LEVEL = "≈"
KINDS = {
    "run": "",
    "searched": "settings chosen on validation data",
    "learned": "learned on unlabelled data",
}
_MOST_SETTINGS = 40


def own_table(group: Group) -> Table:
    """Return each task among its own labels."""
    return numbers_table(group, group.own_measures(), _caption(group, "each task among its own labels"))


def joint_tables(group: Group) -> list[Table]:
    """Return hits@k in one label space for all tasks, and in that in which equal names are one label."""
    spaces = {"joint": "labels of all tasks compete", BY_NAME: "labels of equal names count as one"}
    found = ((group.joint_measures(space), text) for space, text in spaces.items())
    return [numbers_table(group, measures, _caption(group, text), oracle=True) for measures, text in found if measures]


def _caption(group: Group, what: str) -> str:
    seeds = "one seed" if group.seeds == 1 else f"mean ± standard deviation of {group.seeds} seeds"
    measure = group.first.measure.capitalize()
    return f"{group.label}: {measure if 'each' in what else 'hits@k'} in %, {what}; {seeds}"


def numbers_table(group: Group, measures: Sequence[Measure], caption: str, oracle: bool = False) -> Table:
    """Return a row a variant and a column a measure; the best merge is bold, and what cannot be told from it marked."""
    columns = [column(group, measure) for measure in measures]
    shown = [name for name in group.shown if any(cells[name].text != "-" for cells in columns)]
    rows = [
        [Cell(plain(name) + ("\u00a0*" if oracle and name == "finetuned" else "")), *(cells[name] for cells in columns)]
        for name in shown
    ]
    last = max((index for index, name in enumerate(shown) if name in REFERENCES), default=-1)
    parted = (last,) if 0 <= last < len(shown) - 1 and set(shown[: last + 1]) <= set(REFERENCES) else ()
    header = ("variant", *(plain(measure.heading) for measure in measures))
    return Table(caption, header, tuple(map(tuple, rows)), parted=parted)


def column(group: Group, measure: Measure) -> dict[str, Cell]:
    """Return a cell a variant."""
    spreads = {name: group.spread(measure, name) for name in group.variants}
    means = {name: "-" if one is None else f"{100 * one.mean:z.1f}" for name, one in spreads.items()}
    order = group.ranking(measure)
    best = order[0] if order else None
    cells = {}
    for name, one in spreads.items():
        bold = best is not None and name in order and means[name] == means[best]
        difference = None if bold or best is None or name not in order else group.difference(measure, best, name)
        level = difference is not None and difference.apart is False
        cells[name] = Cell(_text(group, one), bold, mark=LEVEL if level else "")
    return cells


def _text(group: Group, spread: Spread | None, sign: str = "") -> str:
    """Return a mean and its deviation in %, and of how many seeds it is, where some lack it."""
    if spread is None:
        return "-"
    return f"{spread:{sign}}" + (f" (of {counted(spread.count, 'seed')})" if spread.count < group.seeds else "")


def gains_table(group: Group) -> Table | None:
    """Return how far each learned merge is above its start on each task and on average; none where none is learned."""
    measures, rows = group.own_measures(), []
    for learned, start in group.starts.items():
        gains = [group.difference(measure, learned, start) for measure in measures]
        cells = (Cell(_text(group, one, "+"), mark=LEVEL if one and one.apart is False else "") for one in gains)
        rows.append([Cell(plain(learned)), *cells])
    caption = f"{group.label}: gain of learned merges over their starts, in points"
    return table(caption, ["merge", *(plain(measure.heading) for measure in measures)], rows) if rows else None


def beside(groups: Sequence[Group], measure: Measure) -> Table:
    """Return one measure of every variant, a column a group."""
    names = list(dict.fromkeys(name for group in groups for name in group.shown))
    columns = [column(group, measure) for group in groups]
    rows = [[Cell(plain(name)), *(cells.get(name, Cell("-")) for cells in columns)] for name in names]
    caption = f"{measure.heading} in %, a column a group of runs; bold: the best merge of each"
    return table(caption, ["variant", *(plain(group.label) for group in groups)], rows)


def runs_table(groups: Sequence[Group], here: Path) -> Table:
    """Return which runs there are."""
    rows = []
    for group in groups:
        seeds = ", ".join("?" if run.seed is None else str(run.seed) for run in group.runs)
        folders = ", ".join(shortened(run.folder, here) for run in group.runs)
        size = f"{group.first.examples:,}"
        rows.append(words(group.label, folders, seeds, len(group.first.tasks), size))
    header = ["group", "run folders", "seeds", "tasks", "examples"]
    return table("Runs that differ in the seed alone are one group", header, rows, left=3)


def shortened(folder: Path, here: Path) -> str:
    """Return a folder's path without what all runs share."""
    folder = folder.resolve()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) and folder != here else folder.name


def differences(groups: Sequence[Group]) -> Table | None:
    """Return the settings and data in which groups differ, a column a group."""
    facts = [_facts(group.runs[0]) for group in groups]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = [
        words(name, *(each.get(name, "-") for each in facts))
        for name in names
        if len({each.get(name) for each in facts}) > 1
    ]
    if not rows:
        return None
    rest = len(rows) - _MOST_SETTINGS
    shown = rows[:_MOST_SETTINGS]
    if rest > 0:
        shown.append(words(f"{rest} more", *("" for _ in groups)))
    return table("What differs between the groups", ["", *(plain(g.label) for g in groups)], shown, 1 + len(groups))


def _facts(run: Run) -> dict[str, str]:
    results = run.results
    facts = {"folder of the results": run.name} if run.kind != "run" else {}
    facts |= {"tasks": ", ".join(results.tasks), "split": results.split}
    facts |= {f"{task}: metric": results.metric(task) or "" for task in results.tasks}
    facts |= {f"{task}: examples (fingerprint)": examples_of(run, task) for task in results.tasks}
    return facts | run.settings


def settings_table(group: Group) -> Table:
    """Return what each variant is."""
    rows = []
    for name in group.shown:
        what, kind = group.description(name), KINDS[group.kind(name)]
        start = f"; started as {group.description(group.starts[name])}" if name in group.starts else ""
        rows.append(words(name, f"{what} ({kind}{start})" if kind else what))
    return table(f"{group.label}: what each variant is", ["variant", "what it is"], rows, left=2)


def data_table(group: Group) -> Table:
    """Return the examples of each task, with the fingerprints of their splits."""
    variant = "finetuned" if "finetuned" in group.first.variants else group.first.variants[0]
    splits = [
        name
        for name in ("train", "val", "test")
        if any(run.fingerprint(task, name) for run in group.runs for task in run.results.tasks)
    ]
    rows = []
    for task in group.first.tasks:
        metric = group.first.metric(task) or ""
        error = standard_error(group.first.score(variant, task, metric)) if metric == "accuracy" else None
        row = [*words(task, METRIC_WORDS.get(metric, metric))]
        for split in splits:
            prints = {run.fingerprint(task, split) for run in group.runs}
            text = (plain(next(iter(prints)) or "-"))[:12] if len(prints) == 1 else "differs by seed"
            row.append(Cell(text, code=len(prints) == 1))
        row.append(Cell(f"{group.first.count(task) or 0:,}"))
        rows.append([*row, Cell("-" if error is None else f"± {100 * error:.1f}")])
    header = ["task", "metric", *(f"{split} fingerprint" for split in splits)]
    numbers = [f"{group.first.split} examples", f"standard error of {variant}"]
    return table(f"{group.label}: the data", [*header, *numbers], rows, left=len(header))


def work_table(groups: Sequence[Group], here: Path) -> Table:
    """Return versions, machine, memory and time of each run."""
    rows = []
    for group in groups:
        for run in group.runs:
            meta = run.results.meta
            versions = ", ".join(f"{name} {text}" for name, text in (meta.get("versions") or {}).items())
            found = machine_words({**meta, "peak_bytes": {}}), machine_words({**meta, "machine": {}})
            texts = [", ".join(each) or "not recorded" for each in found]
            phases = {"fit": "adapt"} if run.results.adapts else {}
            times = [f"{phases.get(k, k)} {duration(v)}" for k, v in (meta.get("seconds") or {}).items()]
            rows.append(words(shortened(run.folder, here), versions or "-", *texts, ", ".join(times) or "-"))
    header = ["run", "versions", "machine", "memory", "time"]
    return table("What each run was made with, on what, and what it took", header, rows, left=5)
