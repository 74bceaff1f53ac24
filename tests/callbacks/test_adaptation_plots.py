"""Pictures of learned masks and coefficients."""

import doctest
import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from callbacks import adaptation_plots
from callbacks.adaptation_plots import coefficients, kept_ranks, pixels, row_order
from callbacks.plots import png
from mergers.adaptive import kept
from mergers.adaptive.kept import KeptRanks, LearnedCoefficients

LAYER = ("k_proj", "v_proj", "q_proj", "out_proj")  # as CLIP's modules come


def masks(layers=2, tasks=("digits", "textures"), directions=80):
    names = tuple(f"vision_model.encoder.layers.{layer}.self_attn.{kind}" for layer in range(layers) for kind in LAYER)
    found = tuple(tuple(7 * row % 70 + column for column in range(len(tasks))) for row in range(len(names)))
    return KeptRanks(names, tuple(tasks), found, ((directions,) * len(tasks),) * len(names))


def learned(values, first):
    names = tuple(f"layers.0.self_attn.{kind}" for kind in LAYER[: len(values)])
    return LearnedCoefficients(names, ("hue", "shade"), tuple(values), tuple(first))


def grid(figure):
    """Names of the rows, and the texts of the cells by row."""
    figure.canvas.draw()
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    cells = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    return names, [[cells[row, column] for column in range(2)] for row in range(len(names))]


def test_rows_of_a_layer_are_query_key_value_output():
    own = masks()
    names, cells = grid(kept_ranks(own))
    assert names[:5] == [f"0.self_attn.{kind}_proj" for kind in ("q", "k", "v", "out")] + ["1.self_attn.q_proj"]
    by_name = dict(zip(own.modules, own.kept, strict=True))
    expected = [list(map(str, by_name[f"vision_model.encoder.layers.{name}"])) for name in names]
    assert cells == expected
    colours = kept_ranks(own).axes[0].images[0].get_array()
    assert [[round(80 * share) for share in row] for row in colours] == [list(map(int, row)) for row in cells]


@pytest.mark.parametrize(
    "names",
    [
        ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "h.0.ln_1"],
        ["resblocks.0.attn.in_proj", "resblocks.0.attn.out_proj", "resblocks.0.mlp.c_fc", "resblocks.0.mlp.c_proj"],
        [
            "layer.0.attention.self.query",
            "layer.0.attention.self.key",
            "layer.0.attention.self.value",
            "layer.0.attention.output.dense",
            "layer.0.intermediate.dense",
            "layer.0.output.dense",
            "layer.0.attention.output.LayerNorm",
        ],
        ["layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj", "layers.0.mlp.gate_proj", "layers.0.mlp.down_proj"],
    ],
)
def test_layers_of_other_models_have_an_order_too(names):
    for given in (names, names[::-1]):
        assert [given[place] for place in row_order(given)] == names


def test_what_is_in_no_layer_keeps_its_place():
    names = ["embedding", "pre_norm.bias", "decoder.0.layer.1.o", "decoder.0.layer.1.q", "decoder.0.layer.0.q", "head"]
    assert [names[place] for place in row_order(names)] == [*names[:2], names[3], names[2], *names[4:]]


def test_the_number_of_directions_is_said_where_there_is_one():
    own = masks()
    assert "of 80 directions each" in kept_ranks(own).get_suptitle()
    other = KeptRanks(own.modules, own.tasks, own.kept, ((80, 90), *own.directions[1:]))
    assert "each" not in kept_ranks(other).get_suptitle() and other.each is None


def test_coefficients_show_where_they_began():
    figure = coefficients(learned([(2.5, 2.2), (2.3, 2.31)], [(2.3, 2.3)] * 2))
    assert figure.get_suptitle().endswith("began at 2.3")
    assert grid(figure)[1] == [["2.50", "2.20"], ["2.30", "2.31"]]
    image = figure.axes[0].images[0]
    assert list(image.get_array()[0]) == pytest.approx([0.2, -0.1])
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((-0.2, 0.2))  # what has not moved is white
    figure = coefficients(learned([(2.5, 2.2), (0.4, 0.5)], [(2.3, 2.3), (0.46, 0.46)]))
    assert figure.get_suptitle().endswith("began at 0.46 or 2.3")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 0.3])
def test_what_has_diverged_or_not_moved_is_drawn_too(value):
    assert pixels(coefficients(learned([(value, 0.3)], [(0.3, 0.3)]))).shape[-1] == 3


@pytest.mark.parametrize(("layers", "tasks"), [(1, 1), (4, 2), (4, 8), (30, 20), (40, 2)])
def test_every_name_is_inside_the_picture_and_apart(layers, tasks):
    figure = kept_ranks(masks(layers, [f"a-task-of-{number}" for number in range(tasks)]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, axes = canvas.get_renderer(), figure.axes[0]
    boxes = [text.get_window_extent(renderer) for text in (*axes.get_yticklabels(), figure._suptitle)]
    width, height = figure.bbox.size
    assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1 for box in boxes)
    rows = sorted(boxes[:-1], key=lambda box: box.y0)
    assert all(one.shrunk(1, 0.8).y1 <= other.shrunk(1, 0.8).y0 for one, other in itertools.pairwise(rows))
    assert boxes[-1].y0 > axes.bbox.y1


def test_same_numbers_same_bytes():
    assert png(kept_ranks(masks())) == png(kept_ranks(masks()))


@pytest.mark.parametrize("module", [adaptation_plots, kept])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
