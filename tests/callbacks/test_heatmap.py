"""The map of colours that takes the place of bars where merges are many."""

import pytest

from callbacks import heatmap, plots
from callbacks.results import Results
from lightning_modules.scores import Score

TASKS = ("digits", "scenes")
MANY = [f"merge-{number}" for number in range(heatmap.MOST_BARS + 1)]


def results(merges, references=("pretrained", "finetuned"), shift=0.0):
    """The later a merge, the better it is on digits, and by less the worse on scenes."""
    values = {"pretrained": (0.4, 0.2), "finetuned": (0.8, 0.5)}
    values |= {name: (0.4 + 0.02 * i + shift, 0.3 - 0.001 * i + shift) for i, name in enumerate(merges)}
    names = (*references, *merges)
    return Results(tuple(Score(n, t, "accuracy", v, 100) for n in names for t, v in zip(TASKS, values[n], strict=True)))


def shown(figure):
    """The rows' names, and each row's numbers."""
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    texts = [text.get_text() for text in axes.texts]
    wide = len(texts) // len(names)
    return {name: texts[wide * row : wide * (row + 1)] for row, name in enumerate(names)}


def test_few_merges_are_bars_and_many_a_map():
    assert heatmap.each_task(results(MANY[:-1])).legends
    assert list(shown(heatmap.each_task(results(MANY)))) == ["pretrained", "finetuned", *reversed(MANY)]


def test_numbers_are_percentages_and_means_over_seeds():
    rows = shown(heatmap.heatmap(results(MANY[:2]), results(MANY[:2], shift=0.02)))
    # digits: 42 and 44 -> 43 %; scenes: 29.9 and 31.9 -> 30.9 %; shares of 80 and 50 %: 53.75 and 61.8 %
    assert rows["merge-1"] == ["43.0", "30.9", "37.0", "57.8"]
    assert rows["finetuned"][-1] == "100.0"


def test_colours_span_the_merges_and_the_best_is_brightest():
    image = heatmap.heatmap(results(MANY)).axes[0].images[0]
    shades = image.get_array()
    assert image.get_clim() == (pytest.approx(50.0), 100.0)
    assert shades[2][-1] == max(shades[2:, -1])


def test_without_finetuned_values_stand_alone_and_decide():
    figure = heatmap.heatmap(results(MANY, references=("pretrained",)))
    rows = shown(figure)
    assert list(rows) == ["pretrained", *reversed(MANY)] and len(rows["pretrained"]) == 3
    assert figure.axes[1].get_ylabel() == "accuracy, %"


def test_an_ensemble_with_joint_scores_alone_has_no_row():
    together = Score("ensemble", "all", "joint_hits@1", 0.5, 100)
    assert "ensemble" not in shown(heatmap.heatmap(Results((*results(MANY).scores, together))))


def test_the_picture_of_many_merges_is_one_a_report_takes():
    assert plots.png(heatmap.heatmap(results(MANY))).startswith(b"\x89PNG")
