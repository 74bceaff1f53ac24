"""Pictures of analyses show the numbers they are given."""

import pytest
import torch

from callbacks.analysis_plots import cka_plot, rank_plot, sides_plot, tasks_plot
from callbacks.interference_plot import interference_plot
from callbacks.plots import png
from mergers import Adapter, LowRankUpdate
from mergers.analysis import analyse


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_tasks_are_curves_with_intervals():
    curves = {
        ("normalised", "pretrained"): [(2, 0.7, 0.1), (3, 0.7, None)],
        ("normalised", "ties"): [(2, 0.9, 0.05), (3, 0.8, None)],
        ("joint_hits@1", "ties"): [(2, 0.5, 0.1), (3, 0.4, None)],
    }
    figure = tasks_plot(curves, "val")
    first, second = figure.axes
    assert first.get_ylabel() == "val score, % of finetuned"
    line, _, (bars,) = first.containers[1]
    assert list(line.get_ydata()) == [90.0, 80.0] and first.containers[1].get_label() == "ties"
    assert [[end for _, end in bar] for bar in bars.get_segments()] == [
        pytest.approx([85.0, 95.0]), pytest.approx([80.0, 80.0])
    ]  # fmt: skip
    assert len(second.containers) == 1 and figure.legends[0].get_texts()[0].get_text() == "pretrained"


def test_alignments_share_one_scale_and_say_their_mean():
    matrices = {"LoRA": [[1.0, 0.25], [0.25, 1.0]], "LoRA in KnOTS space": [[1.0, 0.5], [0.5, 1.0]]}
    figure = cka_plot(matrices, ["hue", "shade"], {"LoRA": 0.25, "LoRA in KnOTS space": 0.5})
    first, second, bar = figure.axes
    assert texts(first) == ["1.00", "0.25", "0.25", "1.00"]
    assert second.get_title() == "LoRA in KnOTS space\nmean of pairs 0.50" and bar.get_ylabel() == "linear CKA"
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 1.0)


def test_sides_stand_in_pairs_with_their_numbers():
    values = {("ties", "column-wise"): 0.85, ("ties", "row-wise"): 0.832, ("mean", "column-wise"): 0.8,
              ("mean", "row-wise"): 0.8}  # fmt: skip
    axes = sides_plot(values, "test").axes[0]
    assert texts(axes) == ["85.0", "80.0", "83.2", "80.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ties", "mean"]


def test_ranks_are_evenly_apart():
    figure = rank_plot({"accuracy": {"finetuned": [(4, 0.9), (16, 0.95), (64, 0.96)], "ties": [(4, 0.7), (16, 0.8)]}})
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and [label.get_text() for label in axes.get_xticklabels()] == ["4", "16", "64"]
    assert list(axes.lines[1].get_ydata()) == [70.0, 80.0]


def test_interference_is_five_maps_of_modules():
    generator = torch.Generator().manual_seed(0)

    def update():
        return LowRankUpdate(torch.randn(2, 9, generator=generator), torch.randn(8, 2, generator=generator))

    names = [f"layers.{layer}.self_attn.{kind}" for layer in range(2) for kind in ("k_proj", "q_proj")]
    found = analyse([Adapter({name: update() for name in names}, task) for task in ("hue", "tint", "shade")])
    figure = interference_plot(found)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title().split("\n")[0] for axes in maps] == [
        "energy", "sign conflict (%)", "weighted conflict (%)", "overlap of inputs", "overlap of outputs"
    ]  # fmt: skip
    assert [label.get_text() for label in maps[0].get_yticklabels()][:2] == ["0.self_attn.q_proj", "0.self_attn.k_proj"]
    energy, conflict = (axes.images[0].get_array() for axes in maps[:2])
    assert energy.shape == (4, 3) and energy.sum(0).tolist() == pytest.approx([100.0] * 3)
    assert conflict.shape == (4, 3)
    assert conflict[0, 2] == pytest.approx(100 * found.pairs[2].modules[names[1]].sign_conflict)
    assert png(figure) == png(interference_plot(found))
