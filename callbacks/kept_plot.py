"""The picture of the directions that a learned merge keeps."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from callbacks.plots import GREY, INK
from mergers.adaptive import KeptRanks

# Modules up to which each row has its name, and tasks and modules up to which each cell has its number.
_NAMED_ROWS = 60
_NUMBERED_CELLS = 400


def kept_ranks(kept: KeptRanks) -> Figure:
    """Draw the share of directions that each task keeps in each module: modules downwards, tasks across."""
    share = np.array(kept.kept) / np.maximum(np.array(kept.directions), 1)
    rows, columns = share.shape
    height = 1.3 + max(0.16, 0.22 if rows <= 30 else 0.0) * min(rows, 120)
    figure = Figure(figsize=(3.2 + 0.55 * columns + 0.045 * _longest(kept.modules), height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns), kept.tasks, rotation=40, ha="right", rotation_mode="anchor")
    every = -(-rows // _NAMED_ROWS)
    axes.set_yticks(range(0, rows, every), [_short(name) for name in kept.modules[::every]])
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    if rows * columns <= _NUMBERED_CELLS:
        for row, column in np.ndindex(rows, columns):
            color = "white" if share[row, column] < 0.55 else INK
            text = str(kept.kept[row][column])
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=7.5, length=2)
    bar.set_label("share of its directions", fontsize=8, color=GREY)
    axes.set_title(
        f"Kept rank per layer and task ({100 * kept.share:.0f} % of all directions)", fontsize=9.5, color=INK
    )
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as uint8 (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _short(module: str) -> str:
    """Return the name of a module without what all layers share, to fit an axis.

    >>> _short("vision_model.encoder.layers.3.self_attn.q_proj"), _short("transformer.resblocks.0.mlp.c_fc")
    ('3.self_attn.q_proj', '0.mlp.c_fc')
    """
    parts = module.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[number:])


def _longest(modules: tuple[str, ...]) -> int:
    return max(len(_short(name)) for name in modules)
