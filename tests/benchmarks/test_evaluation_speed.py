"""The benchmark of evaluation, on a tower of a few thousand weights."""

import contextlib
import doctest
import io
import json

import pytest
from PIL import Image

from benchmarks import evaluation_cases, evaluation_speed, evaluation_ways
from benchmarks.evaluation_cases import Case, merge, picture
from benchmarks.evaluation_speed import Bench, DisagreementError, median, ratio, times_table, verdicts
from launch.cli import main
from lightning_modules.metrics import Evaluator

VARIANTS = ("pretrained", "finetuned", "merge-0", "merge-1")


@pytest.fixture
def bench(tmp_path):
    made = Bench(Case("pictures", tmp_path, ("fruit", "pets")), 1, tmp_path)
    seconds = {"ours": 10.0, "runs": 40.0, "runs cached": 35.0, "sweeps": 20.0, "plain": 8.0, "floor": 5.0}
    made.measured = {(row, 10): [(wall, wall / 2)] * 3 for row, wall in seconds.items()}
    return made


def test_doctests():
    assert doctest.testmod(evaluation_cases).failed == 0


def test_no_two_merges_are_the_same_and_all_can_be_made(tmp_path):
    from mergers import Merger, Ties

    made = [dict(merge(number)) for number in range(20)]
    assert len({json.dumps(one) for one in made}) == 20
    for one in made:
        if isinstance(one["method"], dict):
            one["method"] = Ties(**one["method"]["init_args"])
        Merger(**one)


def test_pictures_are_as_large_as_photographs_and_no_two_alike(tmp_path):
    sizes = []
    for name in ("a", "b"):
        picture(name).save(tmp_path / f"{name}.jpg", quality=90)
        sizes.append((tmp_path / f"{name}.jpg").stat().st_size)
    with Image.open(tmp_path / "a.jpg") as saved:
        assert saved.size == (500, 375)
    assert min(sizes) > 20_000 and sizes[0] != sizes[1]


def test_targets_are_said_to_be_reached_or_missed(bench):
    assert ratio(bench, "runs", 10) == (0.25, 0.25)
    said = verdicts(bench, [10])
    assert "ten merges 4.0 times as fast as ten runs; aimed at 3: reached" in said
    assert "one sweep against plain loop: slower with 10" in said
    assert "one sweep against sheetbend test, a run a merge: never slower" in said
    assert times_table(bench, [10]).row_count == 6 + 4
    assert median([(1.0, 5.0), (3.0, 4.0), (2.0, 9.0)]) == (2.0, 5.0)


def test_ways_that_name_other_examples_end_it(bench):
    bench._agree("one", {"ties pets": 3})
    with pytest.raises(DisagreementError, match="pictures, ties pets: two names 4 examples, another way 3"):
        bench._agree("two", {"ties pets": 4})


@pytest.mark.parametrize(("option", "value"), [("--runs", "0"), ("--variants", "0"), ("--pictures", "-1")])
def test_options_that_cannot_be_meant_end_it(option, value, capsys):
    with pytest.raises(SystemExit):
        evaluation_speed.parse_arguments([option, value])
    assert f"{option} " in capsys.readouterr().err


@pytest.fixture
def here(monkeypatch):
    """Run all ways in this process."""

    def run(bench, command, cache):
        monkeypatch.setenv("SHEETBEND_CACHE", str(cache))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if command[1] == str(evaluation_speed.SCRIPT):
                evaluation_ways.main(command[2:])
            else:
                assert command[1:3] == ["-m", "launch"]
                main(command[3:])
        return (1.0, 1.0), printed.getvalue()

    monkeypatch.setattr(Bench, "_timed", run)


@pytest.mark.slow
def test_all_ways_agree(here, tmp_path, capsys):
    update = Evaluator.update
    words = ["--cases", "pictures", "--tower", "tiny", "--pictures", "12", "--variants", "2", "--runs", "1"]
    assert evaluation_speed.main([*words, "--threads", "1", "--json", str(tmp_path / "figures.json")]) == 0
    (case,) = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert set(case["measured"]) == {f"{row}, 2" for row in evaluation_speed.ROWS}
    right = case["right"]
    assert set(right) == {f"{name} {task}" for name in VARIANTS for task in ("fruit", "pets")}
    assert len({tuple(right[f"{name} {task}"] for task in ("fruit", "pets")) for name in VARIANTS}) > 1
    spent = case["spent"]["2"][0]
    assert min(wall for wall, _ in spent.values()) > 0 and spent["forward passes"][0] < spent["whole"][0]
    assert Evaluator.update is update  # the clocks are gone
    assert "one sweep against" in capsys.readouterr().out


def test_a_way_that_names_others_is_an_exit_status(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        Bench, "measure", lambda bench, variants: (bench._agree("a", {"x": 1}), bench._agree("b", {"x": 2}))
    )
    words = ["--cases", "pictures", "--tower", "tiny", "--pictures", "3", "--variants", "1"]
    assert evaluation_speed.main(words) == 1 and capsys.readouterr().out.startswith("DISAGREE: pictures, x: b names 2")
