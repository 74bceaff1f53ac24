"""The adaptation benchmark, on a tower of a few thousand weights."""

import doctest
import json

import pytest

from benchmarks import adaptation_cases, adaptation_speed
from benchmarks.adaptation_cases import CASES, Setting, our_work, published_work

TINY = ["--geometry", "tiny", "--tasks", "2", "--batch", "2", "--steps", "1", "--threads", "1"]


@pytest.fixture
def here(monkeypatch):
    """Measure in this process."""
    run = lambda script, specification, threads, timeout: adaptation_speed.child_main(specification)  # noqa: E731
    monkeypatch.setattr(adaptation_speed, "in_new_process", run)


def test_doctests():
    assert doctest.testmod(adaptation_cases).failed == 0


def test_both_ways_agree_in_every_case(here, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert adaptation_speed.main([*TINY, "--json", str(figures)]) == 0
    content = json.loads(figures.read_text())
    assert [(row["case"], row["way"]) for row in content["rows"]] == [
        (case, way) for case in CASES for way in adaptation_speed.WAYS
    ]
    for parts in content["differences"].values():
        assert max(parts["merging"].values()) < 1e-5 and set(parts["merging"]) == {"weights", "masks", "coefficients"}
        assert max(parts["step"].values()) < 1e-3 and set(parts["step"]) == {"masks", "coefficients"}
    for row in content["rows"]:
        times = row["step"]["seconds"][0]
        assert min(times["merging"], times["model"]) > 0 and times["merging"] + times["model"] < times["step"]
        assert row["step"]["directions"] == row["merging"]["directions"] > 0
        assert row["preparing"]["seconds"] > 0 and row["preparing"]["layers"] == 2
    assert "DISAGREE" not in capsys.readouterr().out


def test_ways_that_disagree_are_seen(here, monkeypatch, capsys):
    monkeypatch.setitem(adaptation_speed.TOLERANCES, "merging", 0.0)
    assert adaptation_speed.main([*TINY, "--only", "lora-ta", "--no-preparing"]) == 1
    assert "lora-ta: the two ways DISAGREE, merging" in capsys.readouterr().out


def test_a_process_of_its_own_says_what_is_wrong(tmp_path):
    bench = adaptation_speed.Bench(adaptation_speed.parse_arguments(TINY), tmp_path)
    files = [str(tmp_path / "none"), str(tmp_path / "none")]
    assert "none" in bench.child("compare", files=files)["error"]


def test_the_floor_is_that_of_the_shapes():
    setting = Setting()
    shapes = setting.shapes(CASES["full-ta"])
    assert len(shapes) == 72 and sum(rows * columns for rows, columns in shapes.values()) == 12 * 12 * 768**2
    assert len(setting.shapes(CASES["lora-ta"])) == 48
    shape = (3072, 768)
    assert our_work(CASES["full-ta"], shape, 8).flops == published_work(CASES["full-ta"], shape, 8).flops
    assert our_work(CASES["full-cart"], shape, 8).flops == 2 * 3072 * 768 * 8 * (122 + 768)
    assert our_work(CASES["lora-ta"], (768, 768), 8).flops == 2 * 2 * 768**2 * 8 * 16


@pytest.mark.parametrize("options", [["--tasks", "0"], ["--json", "no/such/folder/file.json"], ["--only", "nothing"]])
def test_bad_options_end_with_one_line(options, capsys):
    with pytest.raises(SystemExit) as caught:
        adaptation_speed.parse_arguments(options)
    assert caught.value.code == 2 and options[-1] in capsys.readouterr().err
