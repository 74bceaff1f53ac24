"""Tables and a picture of what was compared, made of the results of all runs."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from callbacks.plots import GREY, GRID, INK, PALETTE
from callbacks.results import REFERENCES, Results, csv_text
from callbacks.statistics import Spread
from examples.adaptation.plan import ROWS, WORLDS, Chosen, Plan, start_of, starts

MEAN = "mean"
COLUMNS = ("world", "row", "seed", "task", "value", "start", "seconds", "kept", "learning_rate")
NOTES = (
    "Test accuracy in %, {seeds}; ± is the standard deviation over seeds. *gain*: mean accuracy less that of "
    "the row that it starts from, seed by seed. *kept*: share of all directions whose mask is on in the end. *seconds* "
    "are of the adaptation, looks at validation data in them; decomposing and testing are not.",
    "Learned rows were adapted for {steps} steps to the test examples themselves, without their labels (transductive, "
    "as in the paper); static rows have not seen them. *+d*: with SHOT's term against collapse (diversity 1). Numbers "
    "behind the names of static rows are coefficients: the best on validation data, and those where learned rows "
    "start. *start-*: CART and TSV as AdaRank starts from them where that is no static merge, since it decomposes "
    "neither embeddings nor the projection of whole models.",
)


@dataclass(frozen=True)
class Entry:
    """What one row of the table measured with one seed.

    Attributes:
        world: of the models.
        row: a variant, or a learned merge.
        seed: of training and adaptation.
        values: test accuracy by task, fractions; their mean is under ``mean``.
        start: the row that a learned merge starts from; none of a static one.
        seconds: of the adaptation.
        kept: share of directions that it keeps, where masks are learned.
        learning_rate: of a learned merge.
    """

    world: str
    row: str
    seed: int
    values: dict[str, float]
    start: str | None = None
    seconds: float | None = None
    kept: float | None = None
    learning_rate: float | None = None


def read_entries(plan: Plan, worlds: Sequence[str], seeds: Sequence[int], chosen: Chosen) -> list[Entry]:
    """Return what all runs have measured."""
    entries = []
    for world in worlds:
        for seed in seeds:
            static = _results(plan.run_folder(world, seed) / "results.json")
            entries += [Entry(world, name, seed, _values(static, name)) for name in static.variants]
            for row, _ in starts(world, chosen[world]):
                start = _results(plan.adaptation_folder(world, seed, row.name) / "results.json")
                entries.append(Entry(world, row.name, seed, _values(start, row.name)))
            for name, row in ROWS.items():
                folder, choice = plan.adaptation_folder(world, seed, name), chosen[world][name]
                learned = _results(folder / "results.json")
                kept = kept_share(folder / "kept_rank.csv") if row.learn != "coefficients" else None
                seconds, start = learned.meta["seconds"]["fit"], start_of(world, row, choice)
                values = _values(learned, name)
                entries.append(Entry(world, name, seed, values, start, seconds, kept, choice.learning_rate))
    return entries


def _results(path: Path) -> Results:
    return Results.from_json(path.read_text(encoding="utf-8"), str(path))


def _values(results: Results, variant: str) -> dict[str, float]:
    return {**{task: results.value(variant, task) for task in results.tasks}, MEAN: results.mean_value(variant)}


def kept_share(path: Path) -> float:
    """Return the share of all directions that is kept, of what `AdaptationCheckpoint` writes."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return sum(int(row["kept"]) for row in rows) / sum(int(row["directions"]) for row in rows)


@dataclass(frozen=True)
class World:
    """The entries of one world, by row in the order of tables: references, static merges, learned ones."""

    name: str
    rows: dict[str, list[Entry]]

    @classmethod
    def of(cls, name: str, entries: Sequence[Entry]) -> "World":
        """Return the world ``name``."""
        own = [entry for entry in entries if entry.world == name]
        return cls(name, {row: [e for e in own if e.row == row] for row in dict.fromkeys(entry.row for entry in own)})

    @property
    def tasks(self) -> list[str]:
        """Every task, and ``mean`` last."""
        return list(next(iter(self.rows.values()))[0].values)

    def spread(self, row: str, task: str) -> Spread:
        """Return the accuracy of ``row`` on ``task`` over seeds."""
        return Spread(tuple(entry.values[task] for entry in self.rows[row]))

    def gain(self, row: str, task: str = MEAN) -> Spread | None:
        """Return by how much ``row`` is above its start, seed by seed; none of a static row."""
        starts = {(entry.row, entry.seed): entry.values[task] for of_row in self.rows.values() for entry in of_row}
        gains = tuple(e.values[task] - starts[e.start, e.seed] for e in self.rows[row] if e.start)
        return Spread(gains) if gains else None

    def cells(self, row: str) -> list[str]:
        """Return the texts of a row: accuracies, gain, kept share, seconds."""
        entries, gain = self.rows[row], self.gain(row)
        kept = [entry.kept for entry in entries if entry.kept is not None]
        seconds = [entry.seconds for entry in entries if entry.seconds is not None]
        values = [self.spread(row, task) for task in self.tasks]
        return [
            *[f"{100 * value.mean:.1f}" for value in values[:-1]],
            f"{values[-1]}",
            "-" if gain is None else f"{gain:+}",
            f"{100 * statistics.fmean(kept):.0f} %" if kept else "-",
            f"{statistics.fmean(seconds):.0f}" if seconds else "-",
        ]

    @property
    def headings(self) -> list[str]:
        """Return the headings of `cells`."""
        return [*self.tasks, "gain", "kept", "seconds"]


def group(row: str) -> int:
    """Return what a row is: 0 a reference, 1 a static merge, 2 a learned one."""
    return 0 if row in REFERENCES else 2 if row in ROWS else 1


def rich_table(world: World) -> Table:
    """Return the table for a terminal."""
    table = Table(title=f"Test accuracy in %, {WORLDS[world.name]}")
    table.add_column("row")
    for heading in world.headings:
        table.add_column(heading, justify="right")
    names = list(world.rows)
    for name, following in zip(names, [*names[1:], None], strict=True):
        table.add_row(name, *world.cells(name), end_section=following is not None and group(name) != group(following))
    return table


def markdown(worlds: Sequence[World], seeds: Sequence[int], steps: int) -> str:
    """Return the tables of all worlds."""
    lines = ["# Learned merges beside static ones on the quickstart tasks", ""]
    for world in worlds:
        lines += [f"## {WORLDS[world.name].capitalize().replace('Lora', 'LoRA')}", ""]
        lines += [f"| row | {' | '.join(world.headings)} |", f"| --- |{' ---: |' * len(world.headings)}"]
        lines += [f"| {name} | {' | '.join(world.cells(name))} |" for name in world.rows] + [""]
    counted = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean over seeds {', '.join(map(str, seeds))}"
    lines += [text for note in NOTES for text in (note.format(seeds=counted, steps=steps), "")]
    return "\n".join(lines)


def tidy_csv(entries: Sequence[Entry]) -> str:
    """Return one line a (world, row, seed, task)."""
    return csv_text(
        COLUMNS,
        [
            (e.world, e.row, e.seed, task, value, e.start, e.seconds, e.kept, e.learning_rate)
            for e in entries
            for task, value in e.values.items()
        ],
    )


def picture(worlds: Sequence[World]) -> Figure:
    """Draw each learned merge from its start to its end: a row of panels a world, a panel a task.

    Hollow points are starts, full ones ends, with a standard deviation over seeds on either side.
    """
    columns = max(len(world.tasks) for world in worlds)
    figure = Figure(figsize=(2.1 + 1.75 * columns, 0.6 + 2.7 * len(worlds)), layout="constrained")
    panels = figure.subplots(len(worlds), columns, squeeze=False, sharey="row")
    names = list(ROWS)
    for world, line in zip(worlds, panels, strict=True):
        for axes, task in zip(line, [*world.tasks, *[None] * (columns - len(world.tasks))], strict=True):
            if task is None:
                axes.set_visible(False)
                continue
            for place, name in enumerate(names):
                start = world.rows[name][0].start
                color = PALETTE[list(dict.fromkeys(n.removesuffix("+d") for n in names)).index(name.removesuffix("+d"))]
                before, after = world.spread(start, task), world.spread(name, task)
                axes.plot([100 * before.mean, 100 * after.mean], [place, place], color=color, linewidth=1, alpha=0.6)
                _point(axes, before, place, color, "white")
                _point(axes, after, place, color, color)
            for reference, dash in (("pretrained", ":"), ("finetuned", "--")):
                axes.axvline(100 * world.spread(reference, task).mean, color=GREY, linestyle=dash, linewidth=1)
            axes.set_title(task, fontsize=9.5, color=INK, fontweight="bold" if task == MEAN else "normal")
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.spines["bottom"].set_color(GREY)
            axes.tick_params(colors=INK, labelsize=8, length=2)
            axes.grid(axis="x", color=GRID, linewidth=0.7)
            axes.tick_params(axis="y", length=0)
            axes.set_axisbelow(True)
        line[0].set_yticks(range(len(names)), names)
        line[0].invert_yaxis()
        line[0].set_ylabel(WORLDS[world.name], color=INK, fontsize=9.5)
    title = "Test accuracy in %: start (hollow) and end (full); finetuned dashed, pretrained dotted"
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def _point(axes, spread: Spread, place: int, color: str, inside: str) -> None:
    error = None if spread.deviation is None else 100 * spread.deviation
    axes.errorbar(100 * spread.mean, place, xerr=error, fmt="o", ms=4, mfc=inside, color=color, lw=1, capsize=1.5)
