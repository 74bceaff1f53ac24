"""Pictures of what a learned merge has come to: modules downwards, tasks across."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from callbacks.plots import GREY, INK
from mergers.adaptive.kept import KeptRanks, LearnedCoefficients

# The files of `kept_ranks` and `coefficients`.
KEPT_PICTURE = "kept_rank.png"
COEFFICIENTS_PICTURE = "coefficients.png"

# Modules up to which each row has its name and a height of its own; tasks and modules up to which cells have numbers.
_NAMED_ROWS = 120
_NUMBERED_CELLS = 400
_ROW, _TALL_ROW, _TALL_ROWS = 0.16, 0.22, 30

# What stands in a layer, from top to bottom: query, key, value, all three in one, output; then into and out of the MLP.
_IN_LAYER = (
    r"(^|\.)(q|q_proj|query|q_lin)$",
    r"(^|\.)(k|k_proj|key|k_lin)$",
    r"(^|\.)(v|v_proj|value|v_lin)$",
    r"(^|\.)(c_attn|in_proj|qkv|query_key_value|Wqkv)$|(^|\.)attn$",
    r"(^|\.)(o|o_proj|out_proj|out_lin)$|att\w*\.(c_proj|proj|output\.dense)$",
    r"(^|\.)(fc1|c_fc|intermediate\.dense|wi(_\d)?|gate_proj|up_proj|lin1)$",
    r"(^|\.)(fc2|c_proj|output\.dense|wo|down_proj|lin2)$",
)


def kept_ranks(kept: KeptRanks) -> Figure:
    """Draw the share of directions that each task keeps in each module, and their number."""
    share = np.array(kept.kept) / np.maximum(np.array(kept.directions), 1)
    there = "all directions" if kept.each is None else f"{kept.each} directions each"
    title = f"Kept rank per layer and task\n{100 * kept.share:.0f} % kept, of {there}"
    numbers = [[str(number) for number in row] for row in kept.kept]
    return _grid(kept, share, numbers, ("viridis", 0.0, 1.0), "share of its directions", title)


def coefficients(learned: LearnedCoefficients) -> Figure:
    """Draw how far each coefficient has moved, and what it is."""
    change = np.array(learned.values) - np.array(learned.first)
    furthest = np.abs(change[np.isfinite(change)]).max(initial=0.0) or 1.0
    began = " or ".join(f"{value:.4g}" for value in learned.beginnings)
    title = f"Learned coefficients per layer and task\nbegan at {began}"
    numbers = [[_coefficient(value) for value in row] for row in learned.values]
    return _grid(learned, change, numbers, ("RdBu_r", -furthest, furthest), "change since the start", title)


def _grid(
    of: KeptRanks | LearnedCoefficients,
    values: np.ndarray,
    numbers: Sequence[Sequence[str]],
    colours: tuple[str, float, float],
    label: str,
    title: str,
) -> Figure:
    """Draw a cell a module and task.

    Args:
        of: names modules and tasks.
        values: (M, T), what is coloured.
        numbers: (M, T), what is written into the cells if there are not too many.
        colours: the name of a colour map, and the values at its ends.
        label: what the colours are.
        title: above the picture.
    """
    order = row_order(of.modules)
    names, values = [short_name(of.modules[row]) for row in order], values[order]
    rows, columns = values.shape
    height = 1.5 + (_TALL_ROW if rows <= _TALL_ROWS else _ROW) * min(rows, _NAMED_ROWS)
    width = 3.2 + 0.55 * columns + 0.045 * max(map(len, names))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    norm, colour_map = Normalize(*colours[1:]), colormaps[colours[0]]
    image = axes.imshow(values, cmap=colour_map, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(columns), of.tasks, rotation=40, ha="right", rotation_mode="anchor")
    every = -(-rows // _NAMED_ROWS)
    axes.set_yticks(range(0, rows, every), names[::every])
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    axes.spines[:].set_visible(False)
    if rows * columns <= _NUMBERED_CELLS:
        for row, column in np.ndindex(rows, columns):
            ink = _ink_on(colour_map(norm(values[row, column])))
            text = numbers[order[row]][column]
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=7.5, length=2)
    bar.set_label(label, fontsize=8, color=GREY)
    figure.suptitle(title, fontsize=9.5, color=INK)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as uint8 (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def row_order(modules: Sequence[str]) -> list[int]:
    """Return the places of ``modules`` in the order of a picture: within a layer q, k, v, out, MLP, and what is left.

    Layers stay in their order, and so do modules of one kind, such as a weight and its bias.

    >>> names = ("h.0.norm", "h.0.attn.k_proj", "h.0.attn.q_proj", "h.0.attn.q_proj.bias", "h.0.mlp.fc1")
    >>> row_order(names)
    [2, 3, 1, 4, 0]
    """
    first: dict[str, int] = {}
    for place, module in enumerate(modules):
        first.setdefault(_layer(module), place)

    def key(place: int) -> tuple[int, int]:
        module = modules[place].removesuffix(".bias")
        kind = next((kind for kind, names in enumerate(_IN_LAYER) if re.search(names, module)), len(_IN_LAYER))
        return first[_layer(modules[place])], kind

    return sorted(range(len(modules)), key=key)


def _layer(module: str) -> str:
    """Return the name up to its last number; the whole of one that has none.

    >>> _layer("decoder.block.0.layer.1.EncDecAttention.q"), _layer("visual_projection")
    ('decoder.block.0.layer.1', 'visual_projection')
    """
    parts = module.split(".")
    last = max((index for index, part in enumerate(parts) if part.isdigit()), default=len(parts))
    return ".".join(parts[: last + 1])


def short_name(module: str) -> str:
    """Return the name of a module without what all layers share, to fit an axis.

    >>> short_name("vision_model.encoder.layers.3.self_attn.q_proj"), short_name("transformer.resblocks.0.mlp.c_fc")
    ('3.self_attn.q_proj', '0.mlp.c_fc')
    """
    parts = module.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[number:])


def _coefficient(value: float) -> str:
    """Return a coefficient in few characters.

    >>> _coefficient(2.3), _coefficient(-0.0134), _coefficient(1e30)
    ('2.30', '-0.01', '1e+30')
    """
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}"


def _ink_on(colour: tuple[float, ...]) -> str:
    """Return the colour of text that can be read on ``colour``, red, green and blue from 0 to 1."""
    return "white" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5 else INK
