"""``sheetbend search``: candidates in shared sweeps, nothing measured twice, the best tested once."""

import csv
import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cli import main
from launch.searching.sweep import Sweeper
from tests.launch.merging import tree
from tests.launch.test_adapt import write_run
from tests.launch.test_cli import refused

SEARCH = {"over": {"coefficients": [0.5, 1.0], "density": [0.2, 0.6]}, "strategy": "grid"}


@pytest.fixture
def run(tiny_clip, tmp_path):
    """Adapters, and the command that searches merges of them."""
    folder, words = write_run(tiny_clip, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"search": SEARCH}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, ["search", *words[1:]]


@pytest.fixture
def measured(monkeypatch):
    """How many candidates each sweep has had."""
    sizes, whole = [], Sweeper.measure

    def counted(sweeper, candidates, merger_of):
        sizes.append(len(candidates))
        return whole(sweeper, candidates, merger_of)

    monkeypatch.setattr(Sweeper, "measure", counted)
    return sizes


def rows(folder):
    with (folder / "candidates.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_grid_is_measured_in_one_sweep_and_its_best_is_tested(run, measured, capsys):
    folder = run[0] / "searches" / "grid"
    before = tree(run[0])
    main(run[1])
    printed = capsys.readouterr().out
    assert measured == [6] and "search grid: by normalised on validation data" in printed
    found = rows(folder)
    assert [(row["merge"], row["coefficients"], row["method.density"]) for row in found] == [
        *(("knots-ties", c, d) for c in ("0.5", "1.0") for d in ("0.2", "0.6")),
        ("mean", "0.5", ""), ("mean", "1.0", ""),
    ]  # fmt: skip
    best = {
        merge: max((row for row in found if row["merge"] == merge), key=lambda row: float(row["normalised"]))
        for merge in ("mean", "knots-ties")
    }
    config = yaml.safe_load((folder / "best.yaml").read_text())["trainer"]["callbacks"][0]["init_args"]["mergers"]
    for merge, row in best.items():
        assert config[merge]["coefficients"] == float(row["coefficients"])
    tested = {score["variant"] for score in json.loads((folder / "results.json").read_text())["scores"]}
    assert tested == {"pretrained", "finetuned", "mean", "knots-ties"}
    assert {path.name for path in (folder / "plots").glob("search_*")} == {"search_mean.png", "search_knots-ties.png"}
    events = EventAccumulator(str(folder / "tensorboard" / "candidates" / "knots-ties-1"))
    events.Reload()
    assert events.Scalars("search/normalised")[0].value == pytest.approx(float(found[0]["normalised"]))
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert {path: content for path, content in tree(run[0]).items() if folder not in path.parents} == before


def test_what_was_measured_is_what_validate_measures(run, tmp_path, capsys):
    main([*run[1], "--test_after_fit", "false"])
    first = json.loads((run[0] / "searches" / "grid" / "candidates.json").read_text())
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    mergers = {"a": {"space": "knots", "coefficients": 0.5,
                     "method": {"class_path": "mergers.Ties", "init_args": {"density": 0.6}}}}  # fmt: skip
    config["trainer"]["callbacks"][0]["init_args"]["mergers"] = mergers
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    main(["validate", "--config", str(tmp_path / "one.yaml")])
    shown = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("a "))
    wanted = {"coefficients": 0.5, "method.density": 0.6}
    scores = next(one["scores"] for one in first["candidates"] if one["values"] == wanted)
    own = [f"{100 * score['value']:.1f}" for score in scores if score["metric"] == "accuracy"]
    assert shown[1:3] == own


@pytest.mark.parametrize("strategy", ["grid", "one_at_a_time", "optuna"])
def test_an_interrupted_search_goes_on_with_nothing_measured_twice(run, measured, strategy, capsys):
    if strategy == "optuna":
        pytest.importorskip("optuna")
    words = [*run[1], "--search.strategy", strategy, "--search.trials", "4", "--search.at_once", "2"]
    whole = Sweeper.measure

    def interrupted(sweeper, candidates, merger_of):
        if len(measured) == 1:
            raise KeyboardInterrupt
        return whole(sweeper, candidates, merger_of)

    with pytest.MonkeyPatch.context() as patch, pytest.raises((SystemExit, KeyboardInterrupt)):
        patch.setattr(Sweeper, "measure", interrupted)
        main([*words, "--test_after_fit", "false"])
    folder = run[0] / "searches" / strategy.replace("_", "-")
    half = json.loads((folder / "candidates.json").read_text())["candidates"]
    main([*words, "--test_after_fit", "false"])
    every = json.loads((folder / "candidates.json").read_text())["candidates"]
    assert every[: len(half)] == half and 0 < len(half) < len(every)
    assert len({json.dumps([one["merge"], one["values"]]) for one in every}) == len(every) == sum(measured)
    before = tree(folder)
    main([*words, "--test_after_fit", "false"])
    assert sum(measured) == len(every)
    assert {path: content for path, content in tree(folder).items() if "optuna" not in path.name} == {
        path: content for path, content in before.items() if "optuna" not in path.name
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--search.metric", "joint_hits@2"], "search.metric 'joint_hits@2' is not recorded"),
        (["--search.metric", "normalized"], "(did you mean 'normalised'?)"),
        (["--search.over", "{}"], "leave nothing to search"),
        (["--search.over", "{densitty: [0.1]}"], "there is no setting 'densitty' (did you mean 'density'?)"),
        (["--search.over", "{density: [2.0]}"], "search over method.density of knots-ties: Ties density is 2.0"),
        (["--search.of", "{knot-ties: {density: [0.1]}}"], "search.of names 'knot-ties'"),
        (["--search.strategy", "random"], "search.strategy: expected one of grid, one_at_a_time, optuna, not 'random'"),
        (["--search.name", "a/b"], "search.name 'a/b' must name a folder"),
        (["--trainer.callbacks", "[]"], "trainer.callbacks has no merge to search"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_nothing_is_written(run, capsys, words, expected):
    before = tree(run[0])
    assert expected in refused(capsys, *run[1], *words)
    assert tree(run[0]) == before


def test_records_of_other_adapters_are_refused_and_damaged_ones_named(run, tiny_clip, tmp_path, capsys):
    words = [*run[1], "--test_after_fit", "false"]
    main(words)
    capsys.readouterr()
    path = run[0] / "searches" / "grid" / "candidates.json"
    content = path.read_text()
    path.write_text(content[:100])
    assert "candidates.json holds no records" in refused(capsys, *words)
    path.write_text(content.replace('"format": 1', '"format": 9'))
    assert "has format 9, not 1" in refused(capsys, *words)
    path.write_text(content)
    search = yaml.safe_load((tmp_path / "config.yaml").read_text())
    write_run(tiny_clip, tmp_path, seed=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(search))
    assert "is of a search with other adapters" in refused(capsys, *words)
