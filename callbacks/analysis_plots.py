"""Pictures of analyses: curves with intervals, pairs of bars, matrices and maps of layers.

Each function returns a ``matplotlib.figure.Figure`` and touches no global state of pyplot.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from callbacks.plots import GREY, GRID, INK, PALETTE, in_legend, style

# Where on the axis, mean, and half the width of the interval, if there is one.
Point = tuple[int, float, float | None]

WORDS = {
    "normalised": "score, % of finetuned",
    "joint_hits@1": "Hits@1 (%) among merged tasks' labels",
}


def tasks_plot(curves: Mapping[tuple[str, str], Sequence[Point]], split: str) -> Figure:
    """Draw a curve a merge over the number of merged tasks, a panel a measure; bars are intervals.

    Args:
        curves: by (measure, merge).
        split: on which it was measured.
    """
    measures = list(dict.fromkeys(measure for measure, _ in curves))
    figure = Figure(figsize=(2.2 + 3.9 * len(measures), 3.7), layout="constrained")
    looks = style(list(dict.fromkeys(merge for _, merge in curves)))
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        own = {merge: points for (of, merge), points in curves.items() if of == measure}
        for index, (merge, points) in enumerate(own.items()):
            aside = 0.028 * (index - (len(own) - 1) / 2)  # so that intervals stand beside each other
            axes.errorbar(
                [count + aside for count, _, _ in points],
                [100 * mean for _, mean, _ in points],
                [100 * (half or 0.0) for _, _, half in points],
                color=looks[merge]["color"],
                linestyle=looks[merge]["dash"],
                linewidth=1.5,
                elinewidth=0.8,
                marker="o",
                markersize=3.2,
                label=in_legend(merge),
            )
        axes.set_ylabel(f"{split} {WORDS[measure]}", color=INK, fontsize=9)
        axes.set_xlabel("merged tasks", color=INK, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        clean(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def clean(axes: Axes, grid: str = "y") -> None:
    """Leave out what distracts."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def cka_plot(
    matrices: Mapping[str, Sequence[Sequence[float]]], tasks: Sequence[str], off: Mapping[str, float]
) -> Figure:
    """Draw a matrix of tasks by tasks for each kind of update, on one scale.

    Args:
        matrices: by kind, (T, T) from 0 to 1.
        tasks: names of rows and columns.
        off: by kind, the mean beside the diagonal.
    """
    side = max(2.6, 0.42 * len(tasks) + 0.9)
    figure = Figure(figsize=(side * len(matrices) + 1.4, side + 0.5), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    for axes, (kind, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, cmap="viridis", vmin=0.0, vmax=1.0)
        axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(tasks)), tasks)
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{kind}\nmean of pairs {off[kind]:.2f}", fontsize=9.5, color=INK)
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                ink = "white" if value < 0.55 else INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    _bar(figure, image, panels, "linear CKA")
    return figure


def _bar(figure: Figure, image: AxesImage, axes: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=7.5, length=2)
    bar.set_label(label, fontsize=8.5, color=GREY)


def sides_plot(values: Mapping[tuple[str, str], float], split: str) -> Figure:
    """Draw a pair of bars a merge, with their numbers.

    Args:
        values: normalised means as fractions, by (merge, side).
        split: on which they were measured.
    """
    merges = list(dict.fromkeys(merge for merge, _ in values))
    sides = list(dict.fromkeys(side for _, side in values))
    figure = Figure(figsize=(7.0, 1.3 + 0.62 * len(merges)), layout="constrained")
    axes = figure.subplots()
    for index, side in enumerate(sides):
        rows = [row + 0.36 * (index - (len(sides) - 1) / 2) for row in range(len(merges))]
        lengths = [100 * values[merge, side] for merge in merges]
        axes.barh(rows, lengths, 0.33, color=PALETTE[2 * index], label=side)
        for row, length in zip(rows, lengths, strict=True):
            axes.annotate(f"{length:.1f}", (max(length, 0.0), row), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=8.5, color=INK)  # fmt: skip
    axes.axvline(100, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(merges)), merges)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *(100 * value for value in values.values())), 110)
    axes.set_xlabel(f"{split} score, % of finetuned, mean over tasks", color=INK, fontsize=9)
    clean(axes, "x")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def rank_plot(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Draw what each variant has at each rank of the adapters, a panel a measure; ranks on a log axis.

    Args:
        curves: by measure and variant, (rank, value as a fraction).
    """
    figure = Figure(figsize=(2.2 + 3.9 * len(curves), 3.7), layout="constrained")
    looks = style(list(dict.fromkeys(name for own in curves.values() for name in own)))
    for axes, (measure, own) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        ranks = sorted({rank for points in own.values() for rank, _ in points})
        for name, points in own.items():
            look = {"color": looks[name]["color"], "linestyle": looks[name]["dash"]}
            axes.plot(*zip(*((rank, 100 * value) for rank, value in points), strict=True), **look, linewidth=1.5,
                      marker="o", markersize=3.2, label=in_legend(name))  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        axes.set_xlabel("rank of the adapters", color=INK, fontsize=9)
        axes.set_ylabel(measure, color=INK, fontsize=9)
        clean(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure
