"""KnOTS over inputs, updates side by side, against KnOTS over outputs, updates above each other."""

from collections.abc import Mapping
from dataclasses import replace

from callbacks.analysis_plots import sides_plot
from callbacks.results import counted, csv_text
from launch.analysing.measured import JOINT, Measured, finetuned_of
from launch.analysing.output import Finding
from launch.commands.screen import say, size, table
from launch.sweeps import Sweeps
from lightning_modules import Variant
from mergers import KnOTS, Merger, SheetbendError
from mergers.spaces.knots import Side

# The paper calls [delta_1 | ... | delta_T] column-wise.
SIDES: Mapping[Side, str] = {"inputs": "column-wise", "outputs": "row-wise"}
# What each merge scored over each side.
Found = Mapping[tuple[str, Side], Measured]


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
    """Test every merge in KnOTS space over both sides, in as few sweeps as memory allows.

    Raises:
        SheetbendError: there is none, or the finetuned value of a task is not above 0.
    """
    jobs = [(name, side) for name in in_knots(mergers) for side in SIDES]
    bytes_each = max(sweeps.bytes_of(over(mergers[name], side)) for name, side in jobs)
    room = sweeps.room(bytes_each)
    say(
        f"analysis sides: {counted(len(jobs) // 2, 'merge')} in KnOTS space x 2 sides = "
        f"{counted(len(jobs), 'merged model')} ({size(bytes_each)} each at most), "
        f"{counted(1 + -(-len(jobs) // room), 'sweep')} of the {sweeps.split} data"
    )
    finetuned = finetuned_of(sweeps.references())

    def variant(job: tuple[str, Side]) -> Variant:
        merged = over(mergers[job[0]], job[1]).merge(sweeps.adapters)
        return sweeps.model.variant(str(merged.merger), merged)

    found = {job: Measured.of(scores, finetuned) for job, scores in sweeps.measure(jobs, variant, room)}
    return finding(found, sweeps.split)


def finding(found: Found, split: str) -> Finding:
    """Put together what is kept and shown."""
    shown = table("merge", "column-wise\nmean", "row-wise\nmean", "column-wise\nnorm. mean", "row-wise\nnorm. mean")
    for merge in dict.fromkeys(merge for merge, _ in found):
        column, row = (found[merge, side] for side in SIDES)
        cells = (column.mean, row.mean, column.mean_normalised, row.mean_normalised)
        shown.add_row(merge, *(f"{100 * value:.1f}" for value in cells))
    rows = [(*job, *row) for job, one in found.items() for row in one.rows()]
    return Finding(
        "sides",
        {"sides.csv": csv_text(("merge", "side", "task", "metric", "value"), rows)},
        sides_plot({(merge, SIDES[side]): one.mean_normalised for (merge, side), one in found.items()}, split),
        {
            f"{merge}-{side}": {
                "sides/normalised": [(0, one.mean_normalised)],
                "sides/mean": [(0, one.mean)],
                **({} if one.joint is None else {f"sides/{JOINT}": [(0, one.joint)]}),
            }
            for (merge, side), one in found.items()
        },
        f"KnOTS column-wise (over inputs) and row-wise (over outputs): {split} scores in %, mean over tasks",
        shown,
    )
