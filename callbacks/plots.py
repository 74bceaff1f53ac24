"""Plots of the results: bars a task, normalised means, and curves over training.

Each function returns a ``matplotlib.figure.Figure`` and touches no global state of pyplot. Given several runs, which
differ in the seed, it draws means, and the sample standard deviation as whiskers or bands.
"""

import io
import itertools
import math
import warnings
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from callbacks.curves import Curves
from callbacks.results import REFERENCES, Results
from callbacks.statistics import Spread

# Paul Tol's "muted" scheme: nine colours that stay apart with every common colour blindness.
PALETTE = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
HATCHES = ("", "///", "...")
INK, GREY, GRID = "#1a1a1a", "#8a8a8a", "#e4e4e4"
DPI = 150


def style(variants: Sequence[str]) -> dict[str, dict]:
    """Return colour, dash and hatch for every variant; references are black and greys.

    From the tenth merge on, colours return with another dash and hatch.
    """
    looks = {
        "finetuned": {"color": INK, "dash": "-"},
        "pretrained": {"color": GREY, "dash": (0, (3, 2))},
        "ensemble": {"color": GREY, "dash": DASHES[2]},
    }
    merged = [name for name in variants if name not in REFERENCES]
    cycle = itertools.cycle(zip(DASHES, HATCHES, strict=True))
    for start in range(0, len(merged), len(PALETTE)):
        dash, hatch = next(cycle)
        for name, color in zip(merged[start : start + len(PALETTE)], PALETTE, strict=False):
            looks[name] = {"color": color, "dash": dash, "hatch": hatch}
    return looks


def in_legend(name: str) -> str:
    """Return a label that a legend shows: matplotlib leaves out those that begin with an underscore.

    >>> in_legend("ties"), len(in_legend("_ties"))
    ('ties', 6)
    """
    return f"\u200b{name}" if name.startswith("_") else name


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG; the same figure gives the same bytes.

    Names are shown as they are: a dollar begins no formula, and of a letter that the font lacks there is a box.
    """
    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # ticks are made as drawn
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # very long names leave no room
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _clean(axes: Axes, grid: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Return mean and sample standard deviation of fractions in %; nan for what is not known.

    >>> spread([0.5]), spread([0.5, None])
    ((50.0, nan), (nan, nan))
    """
    found = Spread(tuple(math.nan if value is None else value for value in values))
    return 100 * found.mean, math.nan if found.deviation is None else 100 * found.deviation


def bars(results: Results, *others: Results) -> Figure:
    """Return grouped bars: the value of every merge on every task and on average.

    A black line over each group marks ``finetuned``, a dashed grey one ``pretrained``; without any merge
    these two are the bars.

    Args:
        results: of one run.
        *others: of other seeds.
    """
    runs = (results, *others)
    names = results.merged or results.variants
    looks = style(results.variants)
    groups = _with_mean(results.tasks)
    height = max(4.4, 0.6 + 0.2 * len(results.variants))  # the legend has a line for each
    figure = Figure(figsize=(max(8.0, 2.6 + 1.55 * len(groups)), height), layout="constrained")
    axes = figure.add_subplot()
    _clean(axes)
    # A wider gap sets the mean apart from the tasks.
    places = [index + 0.25 * (task == "mean") for index, task in enumerate(groups)]
    width = 0.8 / len(names)

    def heights(name: str, part: int = 0) -> list[float]:
        each = [[*(run.value(name, task) for task in results.tasks), run.mean_value(name)] for run in runs]
        return [spread(values)[part] for values in zip(*each, strict=True)][: len(groups)]

    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * width
        axes.bar(
            [place + offset for place in places],
            heights(name),
            width * 0.92,
            yerr=heights(name, 1) if others else None,
            error_kw={"ecolor": INK, "elinewidth": 0.9},
            color=looks[name]["color"],
            hatch=looks[name].get("hatch"),
            edgecolor="white",
            linewidth=0,
            label=in_legend(name),
        )
    handles, labels = axes.get_legend_handles_labels()
    for name in REFERENCES if results.merged else ():
        if results.mean_value(name) is not None:  # the ensemble has joint scores alone
            ends = [place - 0.45 for place in places], [place + 0.45 for place in places]
            line = {"color": looks[name]["color"], "linestyle": looks[name]["dash"], "linewidth": 1.8}
            axes.hlines(heights(name), *ends, **line)
            handles.insert(0, Line2D([], [], **line))
            labels.insert(0, name)
    axes.set_xticks(places, [_wrapped(task) for task in groups])
    axes.set_xlim(-0.6, places[-1] + 0.6)
    lowest = min((value for name in results.variants for value in heights(name) if value == value), default=0.0)
    axes.set_ylim(min(0.0, 1.1 * lowest), 102)  # correlations may be negative
    if lowest < 0:
        axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel(f"{_split_word(results.split)} {results.measure} (%)", color=INK)
    axes.tick_params(axis="x", length=0, labelsize=10)
    axes.spines["bottom"].set_visible(False)
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9.5)
    return figure


def normalised(results: Results, *others: Results) -> Figure:
    """Return one bar a variant, in the order configured: its normalised value, mean over tasks, and the number.

    Args:
        results: of one run.
        *others: of other seeds.
    """
    runs = (results, *others)
    names = [name for name in results.variants if all(run.mean_normalised(name) is not None for run in runs)]
    looks = style(results.variants)
    found = [spread([run.mean_normalised(name) for run in runs]) for name in names]
    values = [mean for mean, _ in found]
    figure = Figure(figsize=(7.0 + 0.5 * bool(others), 1.1 + 0.34 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    _clean(axes, "x")
    rows = range(len(names))
    colours = [looks[name]["color"] for name in names]
    whiskers = {"xerr": [deviation for _, deviation in found], "error_kw": {"ecolor": INK, "elinewidth": 0.9}}
    drawn = axes.barh(rows, values, 0.72, color=colours, edgecolor="white", linewidth=0, **(whiskers if others else {}))
    for bar, name in zip(drawn, names, strict=True):
        bar.set_hatch(looks[name].get("hatch"))
    # The numbers stand in a column beside the axes: at the ends of bars they would cross the line, or names.
    place = (76 if others else 38, 0)
    margin = {"xycoords": axes.get_yaxis_transform(), "xytext": place, "textcoords": "offset points"}
    for row, (value, deviation) in zip(rows, found, strict=True):
        axes.annotate(
            f"{value:.1f}" + (f" ± {deviation:.1f}" if others else ""),
            (1, row),
            **margin,
            ha="right",
            va="center",
            fontsize=9.5,
            color=INK,
        )
    axes.axvline(100, color=INK, linewidth=1.0, zorder=0.9)  # above the grid, below the bars
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(1.02 * min(0.0, *values), 1.02 * max(100.0, *values))
    if min(values) >= 0 and max(values) <= 110:
        axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{_split_word(results.split)} {results.measure}, % of finetuned, mean over tasks", color=INK)
    axes.tick_params(axis="y", length=0, labelsize=10)
    return figure


def curves(history: Curves, adaptation: bool = False, others: Sequence[Curves] = ()) -> Figure:
    """Return validation scores over training steps: a panel a task and one for their mean.

    Args:
        history: the validations.
        adaptation: whether a merge was adapted; each panel then has a range of its own, since little changes.
        others: the validations of other seeds; a line is then drawn where all have a point, with a band around it.
    """
    panels = _with_mean(history.tasks)
    looks = style(history.variants)
    wide = min(3 if len(panels) in (5, 6, 9) else 4, len(panels))
    tall = math.ceil(len(panels) / wide)
    # The legend takes the empty place of the grid, if there is one that holds it.
    inside = len(panels) < wide * tall and len(history.variants) <= 12
    beside = not inside and len(history.variants) > 1
    figure = Figure(figsize=(2.75 * wide + (1.9 if beside else 0.3), 2.45 * tall + 0.3), layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=not adaptation).ravel()
    # Points far apart are hard to see as lines alone; many of them hide the lines.
    marker = "o" if len(history.steps) <= 20 else ""
    for axes, task in zip(grid, panels, strict=False):
        _clean(axes, "both")
        for name in history.variants:
            line = _line((history, *others), name, task)
            first = name == "finetuned"
            if others:
                low, high = ([mean + side * deviation for mean, deviation in line.values()] for side in (-1, 1))
                axes.fill_between(list(line), low, high, color=looks[name]["color"], alpha=0.15, linewidth=0)
            axes.plot(
                list(line),
                [mean for mean, _ in line.values()],
                color=looks[name]["color"],
                linestyle=looks[name]["dash"],
                linewidth=2.4 if first else 1.5,
                marker="" if name == "pretrained" else marker,
                markersize=3.4 if first else 2.4,
                zorder=4 if first else 3,
                label=in_legend(name),
            )
        words, weight = ("mean over tasks", "bold") if task == "mean" else (task, "normal")
        axes.set_title(words, fontsize=10.5, color=INK, loc="left", fontweight=weight)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if adaptation:
            axes.set_ylim(_limits([value for line in axes.lines for value in line.get_ydata()]))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    last = grid[len(panels) - 1]
    for axes in grid[len(panels) :]:
        axes.axis("off")
    for index, axes in enumerate(grid[: len(panels)]):
        # The lowest visible panel of a column carries the numbers of the shared axis.
        axes.tick_params(labelbottom=index + wide >= len(panels))
    figure.supxlabel(f"{'adaptation' if adaptation else 'training'} step", fontsize=10, color=INK)
    figure.supylabel(f"validation {history.measure} (%)", fontsize=10, color=INK)
    if len(history.variants) == 1:  # whose name is that of the run
        return figure
    handles, labels = last.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index] != "finetuned")
    entries = [handles[index] for index in order], [labels[index] for index in order]
    if inside:
        grid[len(panels)].legend(*entries, loc="center left", frameon=False, fontsize=9.5, borderpad=0)
    else:
        figure.legend(*entries, loc="outside right center", frameon=False, fontsize=9.5)
    return figure


def _line(runs: Sequence[Curves], variant: str, task: str) -> dict[int, tuple[float, float]]:
    """Return mean and standard deviation in % by step, of the steps that all runs have."""
    lines = [run.line(variant, task) for run in runs]
    return {step: spread([line[step] for line in lines]) for step in lines[0] if all(step in line for line in lines)}


def _limits(values: Sequence[float], height: float = 10.0) -> tuple[float, float]:
    """Return the ends of an axis around percentages, at least ``height`` apart and hardly beyond what there can be.

    >>> _limits([61.0, 62.0]), _limits([99.0, 100.0]), _limits([0.0, 20.0])
    ((56.5, 66.5), (91.0, 101.0), (-1.0, 21.0))
    """
    found = [value for value in values if not math.isnan(value)] or [0.0]
    low, high = min(found), max(found)
    room = max(0.05 * (high - low), (height - high + low) / 2)
    floor, ceiling = (-1.0 if low >= 0 else -101.0), 101.0
    low = max(min(low - room, ceiling - height), floor)
    return low, min(max(high + room, low + height), ceiling)


def _with_mean(tasks: Sequence[str]) -> list[str]:
    return [*tasks, "mean"] if len(tasks) > 1 else list(tasks)


def _wrapped(task: str) -> str:
    # Long names of neighbouring groups would run into each other.
    return task.replace("-", "-\n").replace("_", "_\n") if len(task) > 11 else task


def _split_word(split: str) -> str:
    return "validation" if split == "val" else split


def figures(results: Results | None, history: Curves) -> dict[str, Figure]:
    """Return every plot there are numbers for, by file name.

    Args:
        results: what the test measured, if it ran.
        history: the validations while fitting.
    """
    found = {}
    if results is not None:
        from callbacks.heatmap import each_task  # it draws with what stands here

        found["bars.png"] = each_task(results)
        if any(results.mean_normalised(name) is not None for name in results.variants):
            found["normalised.png"] = normalised(results)
    if len(history.steps) > 1:
        found["curves.png"] = curves(history, results is not None and results.adapts)
    return found
