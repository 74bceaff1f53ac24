import math
import struct

import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from callbacks import plots
from callbacks.curves import Curves
from callbacks.results import Results
from lightning_modules.scores import Score

TASKS = ("digits", "mnist", "textures", "fashion-mnist", "olivetti-faces", "shapes")
MERGES = ("mean", "task-arithmetic", "ties", "dare-ties", "knots-ties", "knots-dare-ties", "star", "star-ties", "tsv")


def scores(tasks=TASKS, merges=MERGES, share=1.0, references=("pretrained", "finetuned")):
    names = (*references, *merges)
    gain = {"pretrained": 0.0, "finetuned": 1.0} | {name: 0.4 + i / 20 for i, name in enumerate(merges)}
    return [
        Score(name, task, "accuracy", 0.4 + 0.05 * i + 0.3 * share * gain[name], 100)
        for name in names
        for i, task in enumerate(tasks)
    ]


def history(steps=8, **kwargs):
    curves = Curves()
    for step in range(steps):
        curves = curves.record(25 * step, step, scores(share=1 - math.exp(-step / 3), **kwargs))
    return curves


def size(png):
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">II", png[16:24])


@pytest.fixture(scope="module")
def drawn():
    return plots.figures(Results(tuple(scores())), history())


def test_every_plot_has_its_size(drawn):
    assert list(drawn) == ["bars.png", "normalised.png", "curves.png"]
    for figure in drawn.values():
        image = plots.png(figure)
        width, height = figure.get_size_inches() * plots.DPI
        assert size(image) == pytest.approx((width, height), abs=1)
        assert len(image) > 20_000


def test_same_numbers_same_bytes():
    once, again = (plots.png(plots.normalised(Results(tuple(scores())))) for _ in range(2))
    assert once == again
    once, again = (plots.png(plots.curves(history(3, tasks=TASKS[:2]))) for _ in range(2))
    assert once == again


def test_bars_are_the_accuracies(drawn):
    (axes,) = drawn["bars.png"].axes
    results = Results(tuple(scores()))
    heights = {container.get_label(): [bar.get_height() for bar in container] for container in axes.containers}
    assert list(heights) == list(MERGES)
    expected = [100 * results.value("knots-ties", task) for task in TASKS]
    assert heights["knots-ties"] == pytest.approx([*expected, 100 * results.mean_value("knots-ties")])
    labels = [text.get_text() for text in drawn["bars.png"].legends[0].get_texts()]
    assert labels == ["finetuned", "pretrained", *MERGES]


def test_normalised_keeps_the_order(drawn):
    (axes,) = drawn["normalised.png"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pretrained", "finetuned", *MERGES]
    assert axes.yaxis_inverted()
    assert axes.patches[1].get_width() == pytest.approx(100)


def test_numbers_of_normalised_cross_neither_the_line_nor_names():
    levels = {"finetuned": 0.8, "ties": 0.75, "tsv": 0.78, "star": 0.797, "iso": 0.85, "mean": -0.1, "dare": -0.9}
    results = Results(tuple(Score(name, task, "f1", value, 9) for name, value in levels.items() for task in ("a", "b")))
    figure = plots.normalised(results)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["100.0", "93.8", "97.5", "99.6", "106.2", "-12.5", "-112.5"]
    for row, text in enumerate(axes.texts):
        box = text.get_window_extent(canvas.get_renderer())
        assert axes.bbox.x1 < box.x0 and box.x1 < figure.bbox.x1
        assert axes.transData.inverted().transform((box.x0, (box.y0 + box.y1) / 2))[1] == pytest.approx(row, abs=0.1)


def test_curves_have_a_panel_a_task_and_their_mean(drawn):
    panels = [axes for axes in drawn["curves.png"].axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in panels] == [*TASKS, "mean over tasks"]
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == ["pretrained", "finetuned", *MERGES]
        widths = {line.get_label(): line.get_linewidth() for line in axes.lines}
        assert max(widths, key=widths.get) == "finetuned"
    last = panels[-1].lines[1]
    assert last.get_ydata()[-1] == pytest.approx(100 * history().line("finetuned", "mean")[175])


@pytest.mark.parametrize("name", ["bars.png", "normalised.png", "curves.png"])
def test_no_text_overlaps_or_leaves_the_figure(drawn, name):
    figure = drawn[name]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    texts = [text for legend in legends for text in legend.get_texts()]
    for axes in figure.axes:
        if axes.axison:
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            low, high = sorted(axes.get_xlim())
            if axes.xaxis.get_tick_params().get("labelbottom", True):
                texts += [t for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
            low, high = sorted(axes.get_ylim())
            if axes.yaxis.get_tick_params().get("labelleft", True):
                texts += [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    assert len(boxes) > 15
    width, height = figure.bbox.size
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
        for other, second in boxes[i + 1 :]:
            assert not box.shrunk(0.9, 0.8).overlaps(second.shrunk(0.9, 0.8)), (text, other)


def test_styles_tell_variants_apart():
    names = [f"m{i}" for i in range(20)]
    looks = plots.style(["pretrained", "finetuned", "ensemble", *names])
    assert len({(to_hex(look["color"]), str(look["dash"])) for look in looks.values()}) == 23
    assert looks["m0"]["color"] == looks["m9"]["color"] and looks["m0"]["hatch"] != looks["m9"]["hatch"]


def test_one_task_alone_needs_no_mean():
    drawn = plots.figures(Results(tuple(scores(TASKS[:1], ()))), history(3, tasks=TASKS[:1], merges=()))
    assert [axes.get_title(loc="left") for axes in drawn["curves.png"].axes] == ["digits"]
    assert len(drawn["bars.png"].axes[0].patches) == 2
    assert all(len(plots.png(figure)) > 5000 for figure in drawn.values())


def looked_at(levels, variant="adarank"):
    """The validations of one variant: a level a task, which falls by two points."""
    curves = Curves()
    for step in range(0, 50, 10):
        found = [Score(variant, task, "accuracy", level - 0.0005 * step, 100) for task, level in levels.items()]
        curves = curves.record(step, step // 10, found)
    return curves


def test_each_panel_of_an_adaptation_has_a_range_of_its_own():
    levels = {"low": 0.021, "middle": 0.5, "high": 1.0}
    figure = plots.curves(looked_at(levels), adaptation=True)
    plots.png(figure)
    for axes, level in zip(figure.axes, levels.values(), strict=False):
        low, high = axes.get_ylim()
        assert high - low == pytest.approx(10) and -1 <= low < 100 * level - 2 and 100 * level < high <= 101
        shown = [tick.get_text() for tick in axes.get_yticklabels() if low <= tick.get_position()[1] <= high]
        assert axes.yaxis.get_tick_params()["labelleft"] and len(shown) >= 4
    assert figure.get_supxlabel() == "adaptation step"
    wide = Curves((*looked_at({"a": 0.9}).points, *looked_at({"a": 0.3}, "other").points))
    low, high = plots.curves(wide, adaptation=True).axes[0].get_ylim()
    assert low < 28 and high > 90


def test_panels_of_a_fit_share_their_range():
    figure = plots.curves(looked_at({"a": 0.2, "b": 0.9}))
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.get_supxlabel() == "training step"


def test_one_line_needs_no_legend():
    one = plots.curves(looked_at({"a": 0.5, "b": 0.6}), adaptation=True)
    two = plots.curves(history(3, tasks=TASKS[:2], merges=()))
    assert not one.legends and two.legends and one.get_figwidth() < two.get_figwidth()
    inside = plots.curves(looked_at(dict.fromkeys(TASKS[:4], 0.5)))
    assert not any(axes.get_legend() for axes in inside.axes)


def test_what_has_no_numbers_is_not_drawn():
    results = Results(tuple(scores(references=("pretrained",))))
    assert list(plots.figures(results, Curves())) == ["bars.png"]
    assert list(plots.figures(None, history(1))) == []


def test_no_global_state_is_touched():
    import matplotlib.pyplot as plt

    before, open_before = dict(rcParams), plt.get_fignums()
    plots.png(plots.normalised(Results(tuple(scores(TASKS[:2], MERGES[:2])))))
    assert dict(rcParams) == before and plt.get_fignums() == open_before


def test_an_ensemble_with_joint_scores_alone_has_no_bars():
    together = [Score("ensemble", name, "joint_hits@1", 0.5, 100) for name in (*TASKS, "all")]
    figures = plots.figures(Results((*scores(), *together)), history())
    (legend,) = figures["bars.png"].legends
    assert {text.get_text() for text in legend.get_texts()} == {"pretrained", "finetuned", *MERGES}


def test_names_are_no_formulas_and_give_no_warnings():
    tasks = ("$\\foo$", "a$b", "漢字")
    results, curves = Results(tuple(scores(tasks, ("$x", "字" * 64)))), history(tasks=tasks, merges=("$\\frac$",))
    for figure in (plots.bars(results), plots.normalised(results), plots.curves(curves)):
        assert size(plots.png(figure))
