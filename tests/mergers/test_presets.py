"""Merges by name."""

import pytest
from builders import random_adapters

import mergers
from mergers import PRESETS, Iso, KnOTS, Merger, SheetbendError, Ties, preset
from mergers.methods.base import Method
from mergers.presets import DESCRIPTIONS, RECIPES
from mergers.registry import registered
from mergers.transforms.base import Transform


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_merges(name):
    merged = Merger.preset(name, coefficients={"task_0": 0.5, "task_1": 1.0}).merge(random_adapters(2))
    assert len(merged) == 3
    assert all(values.isfinite().all() for values in merged.dense().values())
    assert "\n" not in DESCRIPTIONS[name]
    assert "arXiv" in DESCRIPTIONS[name]


def test_every_method_and_step_has_a_preset():
    steps = {type(step) for merger in PRESETS.values() for step in merger.steps}
    for package, base in (("mergers.methods", Method), ("mergers.transforms", Transform)):
        assert set(registered(package, base).values()) <= steps
    assert Iso in steps


def test_names_are_recipes_with_a_space_before_them():
    assert set(RECIPES) < set(PRESETS)
    assert {"knots-ties", "knots-dare-ties", "core-tsv-iso", "core-ties-iso"} < set(PRESETS)
    assert all(type(merger.space).__name__ == "Core" for name, merger in PRESETS.items() if name.startswith("core-"))


def test_fields_of_a_preset_can_be_replaced():
    assert preset("knots-ties", method=Ties(density=0.3), coefficients=0.6) == Merger(
        KnOTS(), Ties(density=0.3), coefficients=0.6
    )
    assert preset("knots-ties") == PRESETS["knots-ties"], "which stays as it was"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("knots-tie", ["unknown preset 'knots-tie'", "did you mean 'knots-ties'", "dare-ties", "knots- or core-"]),
        ("nothing", ["unknown preset 'nothing'", "known presets: mean"]),
        ("core-mean", ["unknown preset 'core-mean'", "those whose result depends on the space"]),
    ],
)
def test_an_unknown_preset_lists_the_known_ones(name, words):
    with pytest.raises(SheetbendError) as caught:
        mergers.preset(name)
    for word in words:
        assert word in str(caught.value)
