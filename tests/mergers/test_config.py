"""Mergers as YAML, through jsonargparse, and what the package imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from mergers import Dare, Full, KnOTS, Mean, Merger, Star, TaskArithmetic, Ties

jsonargparse = pytest.importorskip("jsonargparse")

YAML = """
callback:
  mergers:
    knots-ties: {space: knots, method: {class_path: mergers.Ties, init_args: {density: 0.3}}, coefficients: 0.6}
    star: {space: full, method: mean, transforms: [{class_path: mergers.Star, init_args: {eta: 30}}]}
    ties: {method: ties}
    dare: {method: Ties, transforms: [star, {class_path: mergers.Dare, init_args: {drop_rate: 0.2}}]}
    unscaled: {space: {class_path: mergers.KnOTS, init_args: {scale_by_singular_values: false}}}
    weighted: {method: task_arithmetic, coefficients: {mnist: 0.2, digits: 1}}
    listed: {method: TaskArithmetic, coefficients: [0.2, 1]}
"""
EXPECTED = {
    "knots-ties": Merger(KnOTS(), Ties(density=0.3), coefficients=0.6),
    "star": Merger(Full(), Mean(), [Star(30)]),
    "ties": Merger(method=Ties()),
    "dare": Merger(method=Ties(), transforms=[Star(), Dare(0.2)]),
    "unscaled": Merger(KnOTS(scale_by_singular_values=False)),
    "weighted": Merger(method=TaskArithmetic(), coefficients={"mnist": 0.2, "digits": 1.0}),
    "listed": Merger(method=TaskArithmetic(), coefficients=[0.2, 1.0]),
}


class Callback:
    """Stands for a callback with mergers.

    Args:
        mergers: Name of a variant to its merger.
    """

    def __init__(self, mergers: dict[str, Merger]):
        self.mergers = mergers


def parser():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Callback, "callback")
    return parser


def test_yaml_gives_mergers_and_survives_a_dump(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    config = parser().parse_args(["--config", str(path)])
    assert parser().instantiate_classes(config).callback.mergers == EXPECTED
    path.write_text(parser().dump(config))
    again = parser().parse_args(["--config", str(path)])
    assert parser().instantiate_classes(again).callback.mergers == EXPECTED


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("{method: {class_path: mergers.Ties, init_args: {density: 2}}}", "density is 2.0"),
        ("{method: {class_path: mergers.Ties, init_args: {densty: 0.2}}}", "densty"),
        ("{method: tise}", "did you mean 'Ties'"),
        ("{coefficients: much}", "much"),
        ("{trnsforms: []}", "trnsforms"),
    ],
)
def test_faults_in_yaml_are_named(setting, word, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"callback: {{mergers: {{bad: {setting}}}}}")
    with pytest.raises(Exception, match=word):
        parser().instantiate_classes(parser().parse_args(["--config", str(path)]))


def test_help_explains_every_field():
    import io
    from contextlib import redirect_stdout

    merger_parser = jsonargparse.ArgumentParser()
    merger_parser.add_class_arguments(Merger, "merger")
    text = " ".join(merger_parser.format_help().split())
    for words in ("Basis in which updates are merged", "Weights of the tasks", "known subclasses: mergers.Core"):
        assert words in text
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        merger_parser.parse_args(["--merger.method.help=Ties"])
    assert "Fraction of the entries that is kept" in " ".join(out.getvalue().split())


def test_import_is_light():
    code = "import mergers, sys; print([m for m in ('lightning', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"lightning", "transformers", "peft"}
    assert not heavy & set(eval(done.stdout))


def test_numpy_is_not_needed(tmp_path):
    code = """
import sys
sys.modules["numpy"] = None  # an import of it fails
import torch
from mergers import *
from mergers.cache import AlignmentCache
updates = {"layer": LowRankUpdate(torch.ones(2, 5), torch.ones(4, 2))}
merger = Merger("knots", "ties")
adapters = [Adapter(updates, name) for name in "ab"]
merger.merge(adapters, encode=AlignmentCache("cache").encoder(merger.space)).save("merged")
torch.testing.assert_close(load_adapter("merged")["layer"].dense(), adapters[0]["layer"].dense())
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(root)}
    )
