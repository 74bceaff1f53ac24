"""Pictures of a search: what each setting does to what decides."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.plots import GREY, GRID, INK, PALETTE

# From this ratio of the largest to the smallest value on, the axis is logarithmic.
WIDE = 50
# Letters of a value at its tick.
LONG = 28

# One candidate: the values of its settings, and its score as a fraction.
Point = tuple[Mapping[str, Any], float]


def search_plot(merge: str, points: Sequence[Point], metric: str) -> Figure:
    """Draw the score of every candidate against each setting, a panel a setting, and the best of each value as a line.

    Args:
        merge: name of the merge.
        points: its candidates, in the order in which they were measured.
        metric: what decides.
    """
    settings = list(dict.fromkeys(name for values, _ in points for name in values))
    figure = Figure(figsize=(1.2 + 2.9 * len(settings), 3.0), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    best = max(points, key=lambda point: point[1])
    for axes, setting in zip(panels, settings, strict=True):
        _panel(axes, setting, points, best)
    panels[0].set_ylabel(f"{metric} on validation data, %", color=INK, fontsize=8.5)
    words = ", ".join(f"{name.rpartition('.')[2]} {_text(value)}" for name, value in best[0].items())
    title = textwrap.fill(f"{merge}: best {100 * best[1]:.1f} at {words}", int(14 * figure.get_figwidth()))
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def _panel(axes: Axes, setting: str, points: Sequence[Point], best: Point) -> None:
    own = [(values[setting], 100 * score) for values, score in points if setting in values]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in own)
    order = sorted({value for value, _ in own}) if numbers else list(dict.fromkeys(_text(value) for value, _ in own))
    places = {value: value if numbers else index for index, value in enumerate(order)}
    at = [(places[value if numbers else _text(value)], score) for value, score in own]
    axes.plot(*zip(*at, strict=True), "o", color=PALETTE[0], alpha=0.45, markersize=4, linestyle="none")
    tops = {place: max(score for here, score in at if here == place) for place in sorted({place for place, _ in at})}
    axes.plot(list(tops), list(tops.values()), color=PALETTE[0], linewidth=1.2)
    chosen = best[0][setting]
    axes.plot(places[chosen if numbers else _text(chosen)], 100 * best[1], "*", color=INK, markersize=11)
    if numbers and len(order) > 1 and order[0] > 0 and order[-1] / order[0] >= WIDE:
        axes.set_xscale("log")
    if not numbers:
        axes.set_xticks(range(len(order)), order, rotation=25, ha="right")
    axes.set_xlabel(setting, color=INK, fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONG else f"{text[: LONG - 1]}…"
