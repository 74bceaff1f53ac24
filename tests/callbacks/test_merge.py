"""Mergers of MergeCallback, as Python and as YAML."""

import jsonargparse
import pytest

from callbacks import MergeCallback
from mergers import Core, Merger, SheetbendError, Ties, preset


def test_a_preset_takes_the_place_of_a_merger():
    callback = MergeCallback({"knots": "knots-ties", "own": Merger("core", Ties(density=0.3))})
    assert callback.mergers == {"knots": preset("knots-ties"), "own": Merger(Core(), Ties(density=0.3))}
    callback.check(["a", "b"])


def test_an_unknown_preset_is_refused():
    with pytest.raises(SheetbendError, match=r"unknown preset 'knots-tise' \(did you mean 'knots-ties'\?\)"):
        MergeCallback({"ties": "knots-tise"})


YAML = """
callback:
  class_path: callbacks.MergeCallback
  init_args:
    mergers:
      preset: core-tsv-iso
      written_out:
        space: knots
        method:
          class_path: mergers.Ties
          init_args: {density: 0.3}
        coefficients: 0.6
"""


def test_presets_and_mergers_in_yaml():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MergeCallback, "callback")
    callback = parser.instantiate_classes(parser.parse_string(YAML)).callback
    assert callback.mergers == {
        "preset": preset("core-tsv-iso"),
        "written_out": Merger("knots", Ties(density=0.3), coefficients=0.6),
    }


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("{method: {class_path: mergers.Ties, init_args: {density: 2}}}", "density is 2.0"),
        ("{method: {class_path: mergers.Ties, init_args: {densty: 0.2}}}", "densty"),
        ("{method: tise}", "did you mean 'Ties'"),
        ("knots-tise", "did you mean 'knots-ties'"),
    ],
)
def test_faults_in_yaml_are_named(setting, word):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MergeCallback, "callback")
    text = f"callback: {{class_path: callbacks.MergeCallback, init_args: {{mergers: {{bad: {setting}}}}}}}"
    with pytest.raises(Exception, match=word):
        parser.instantiate_classes(parser.parse_string(text))
