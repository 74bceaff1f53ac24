"""Maps of interference: modules downwards, tasks or pairs of tasks across."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.adaptation_plots import row_order, short_name
from callbacks.plots import GREY, INK
from mergers.analysis import Analysis

# Modules up to which each row has its name and a height of its own.
_NAMED_ROWS = 96
_ROW = 0.17


def interference_plot(found: Analysis) -> Figure:
    """Draw five maps: norms by task; sign conflicts, weighted conflicts, overlaps of inputs and outputs by pair.

    Each map has colours of its own, since what is much differs: conflicts lie around one half, overlaps are shown above
    chance.

    Args:
        found: of two adapters or more that have modules in common.
    """
    modules = list(found.pairs[0].modules)
    modules = [modules[place] for place in row_order(modules)]
    pairs = [f"{pair.first}, {pair.second}" for pair in found.pairs]
    tasks = list(found.adapters)
    energy = [[found.adapters[task][module].norm ** 2 for task in tasks] for module in modules]
    share = 100 * np.array(energy) / np.maximum(np.sum(energy, axis=0), 1e-300)
    facts = [[pair.modules[module] for pair in found.pairs] for module in modules]
    above = [
        [[_above(getattr(one, side), getattr(one, f"{side}_by_chance")) for one in row] for row in facts]
        for side in ("inputs", "outputs")
    ]
    most = max(0.01, np.nanmax([*above[0], *above[1]], initial=0.0))
    conflicts = [[[100 * getattr(one, name) for one in row] for row in facts]
                 for name in ("sign_conflict", "weighted_conflict")]  # fmt: skip
    far = max(1.0, np.abs(np.array(conflicts) - 50).max())
    width = 2.6 + 0.26 * len(tasks) + 4 * (0.8 + 0.2 * len(pairs))
    figure = Figure(figsize=(width, 1.9 + _ROW * min(len(modules), _NAMED_ROWS)), layout="constrained")
    ratios = [len(tasks), *[len(pairs)] * 4]
    panels = figure.subplots(1, 5, sharey=True, width_ratios=ratios)
    _map(panels[0], share, tasks, "energy\n(% of squared norm)", ("Greys", 0.0, float(share.max())))
    for axes, values, name in zip(panels[1:3], conflicts, ("sign conflict (%)", "weighted conflict (%)"), strict=True):
        _map(axes, values, pairs, f"{name}\n50 % if unrelated", ("RdBu_r", 50 - far, 50 + far))
    for axes, values, name in zip(panels[3:], above, ("inputs", "outputs"), strict=True):
        _map(axes, values, pairs, f"overlap of {name}\nabove chance", ("viridis", 0.0, most))
    every = -(-len(modules) // _NAMED_ROWS)
    panels[0].set_yticks(range(0, len(modules), every), [short_name(name) for name in modules[::every]])
    return figure


def _map(
    axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str], title: str, colours: tuple[str, float, float]
) -> None:
    image = axes.imshow(
        np.array(values, dtype=float), cmap=colours[0], vmin=colours[1], vmax=colours[2], aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, color=INK)
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", fraction=0.03, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=7, length=2)


def _above(value: float | None, chance: float | None) -> float:
    """Return how much of what chance leaves over is shared.

    >>> _above(0.6, 0.2), _above(0.1, 0.2)
    (0.49999999999999994, 0.0)
    """
    if value is None or chance is None or chance >= 1:
        return float("nan")
    return max(0.0, (value - chance) / (1 - chance))
