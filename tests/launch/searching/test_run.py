"""``sheetbend search``: candidates in shared sweeps, nothing measured twice, the best tested once."""

import csv
import importlib.util
import json
import shutil
import sys

import pytest
import yaml
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from launch.cli import main
from launch.locks import alone
from launch.searching.records import Candidate, Record, Records
from launch.searching.sweep import Sweeper
from lightning_modules import LoRATasks, Score
from mergers import KnOTS, Merger, SheetbendError, load_adapter
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
    sizes, whole = [], Sweeper.sweep

    def counted(sweeper, candidates, merger_of):
        sizes.append(len(candidates))
        return whole(sweeper, candidates, merger_of)

    monkeypatch.setattr(Sweeper, "sweep", counted)
    return sizes


def rows(folder):
    with (folder / "candidates.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def rows_in_tensorboard(folder):
    """What TensorBoard's HParams page lists of the candidates: merge, coefficient and score of each."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = Context(TBContext(logdir=str(folder), multiplexer=multiplexer, data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100, allowed_statuses=[0, 1, 2, 3])
    request.col_params.add().metric.tag = "search/normalised"
    every = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    found = [
        (
            int(group.sessions[0].name.rpartition("-")[2]),
            group.hparams["merge"].string_value,
            group.hparams["coefficients"].number_value,
            100 * next(one.value for one in group.metric_values if one.name.tag == "search/normalised"),
        )
        for group in every
    ]
    return [row[1:] for row in sorted(found)]


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
    assert yaml.safe_load((folder / "test_config.yaml").read_text())["search"]["strategy"] == "grid"
    tested = {score["variant"] for score in json.loads((folder / "results.json").read_text())["scores"]}
    assert tested == {"pretrained", "finetuned", "mean", "knots-ties"}
    assert {path.name for path in (folder / "plots").glob("search_*")} == {"search_mean.png", "search_knots-ties.png"}
    events = EventAccumulator(str(folder / "candidates" / "knots-ties-1"))
    events.Reload()
    assert events.Scalars("search/normalised")[0].value == pytest.approx(float(found[0]["normalised"]))
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert rows_in_tensorboard(folder / "candidates") == [
        (row["merge"], float(row["coefficients"]), pytest.approx(100 * float(row["normalised"]))) for row in found
    ]
    pictures = EventAccumulator(str(folder / "candidates" / "search"))
    pictures.Reload()
    assert pictures.Tags()["images"] == ["search/knots-ties", "search/mean"]
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


@pytest.mark.parametrize("strategy", ["grid", pytest.param("one_at_a_time", marks=pytest.mark.slow), "optuna"])
def test_an_interrupted_search_goes_on_with_nothing_measured_twice(run, measured, strategy, tmp_path, capsys):
    if strategy == "optuna":
        pytest.importorskip("optuna")
    words = [*run[1], "--search.strategy", strategy, "--search.trials", "4", "--search.at_once", "2"]
    whole = LoRATasks.variant

    def interrupted(module, description, merged):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return whole(module, description, merged)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(LoRATasks, "variant", interrupted)
        main([*words, "--test_after_fit", "false"])
    assert stop.value.code == 130
    assert "candidates.json holds what was measured; give the same command again" in capsys.readouterr().out
    assert measured.pop() == 2  # in vain
    folder = run[0] / "searches" / strategy.replace("_", "-")
    half = json.loads((folder / "candidates.json").read_text())["candidates"]
    main([*words, "--test_after_fit", "false"])
    every = json.loads((folder / "candidates.json").read_text())["candidates"]
    assert all(one in every for one in half) and 0 < len(half) < len(every)
    shutil.copytree(run[0] / "adapters", tmp_path / "whole" / "adapters")
    own = list(measured)
    main([*words, "--test_after_fit", "false", "--trainer.default_root_dir", str(tmp_path / "whole")])
    measured[:] = own
    whole = json.loads((tmp_path / "whole" / "searches" / folder.name / "candidates.json").read_text())["candidates"]
    assert [(one["merge"], one["values"], one["scores"]) for one in every] == [
        (one["merge"], one["values"], one["scores"]) for one in whole
    ]
    assert len({json.dumps([one["merge"], one["values"]]) for one in every}) == len(every) == sum(measured)
    before = tree(folder)
    (folder / "candidates.csv").write_text("")  # it was killed before it wrote this
    main([*words, "--test_after_fit", "false"])
    assert sum(measured) == len(every)
    own = [path for path in before if "optuna" not in path.name and "tfevents" not in path.name]
    assert {path: tree(folder)[path] for path in own} == {path: before[path] for path in own}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--search.metric", "joint_hits@2"], "search.metric 'joint_hits@2' is not recorded"),
        (["--search.metric", "normalized"], "(did you mean 'normalised'?)"),
        (["--search.metric", "nope", "--model.adapters", "gone"], "search.metric 'nope' is not recorded"),
        (["--search.over", "{}"], "leave nothing to search"),
        (["--search.over", "{densitty: [0.1]}"], "'densitty', which no merge has (did you mean 'density'?)"),
        (["--search.over", "{density: [2.0]}"], "search over method.density of knots-ties: Ties density is 2.0"),
        (
            ["--search.of", "{knot-ties: {density: [0.1]}}"],
            "search.of names 'knot-ties'; known merges: knots-ties, mean (did you mean 'knots-ties'?)",
        ),
        (["--search.over", "{density: {low: 0.1, high: 0.5}}"], "grid needs a step in its range"),
        (["--search.of", "{mean: null}"], "search.of: expected a mapping, not None"),
        (["--trainer.limit_val_batches", "0"], "limit_val_batches is 0, so nothing would be measured"),
        (["--search.at_once", "0"], "search.at_once is 0"),
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
    assert "has format 9, not 1; give another search.name" in refused(capsys, *words)
    whole = json.loads(content)
    texts = [{**one, "scores": [{**one["scores"][0], "value": "high"}]} for one in whole["candidates"]]
    for damage in (
        {"identity": None},
        {"references": [{**whole["references"][0], "value": "high"}]},
        {"candidates": texts},
        {"candidates": [{**one, "values": None} for one in whole["candidates"]]},
    ):
        path.write_text(json.dumps(whole | damage))
        assert "candidates.json holds no records" in refused(capsys, *words), damage
    path.write_text("[" * 100_000)
    assert "candidates.json holds no records" in refused(capsys, *words)
    path.write_text(content)
    # Coefficients in a list go by the order of the tasks.
    assert "is of a search with other adapters" in refused(capsys, *words, "--data.tasks", "[shade, hue]")
    search = yaml.safe_load((tmp_path / "config.yaml").read_text())
    write_run(tiny_clip, tmp_path, seed=1)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(search))
    assert "is of a search with other adapters" in refused(capsys, *words)


def test_steps_by_class_are_searched_and_each_alignment_is_made_once(run, measured, tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    made, whole = [], KnOTS.encode
    monkeypatch.setattr(KnOTS, "encode", lambda space, updates: made.append(space) or whole(space, updates))
    outputs = {"class_path": "mergers.KnOTS", "init_args": {"concatenate": "outputs"}}
    over = {"coefficients": [0.5, 1.0], "space": ["full", "knots", outputs], "density": [0.2, 0.6]}
    words = [*run[1], "--search.over", json.dumps(over), "--test_after_fit", "false", "--search.at_once", "4"]
    main(words)
    found = rows(run[0] / "searches" / "grid")
    assert len(found) == sum(measured) == 2 * 3 * 2 + 2 * 3
    assert {row["space"] for row in found} == {"full", "knots", "KnOTS(concatenate=outputs)"}
    modules = len(load_adapter(run[0] / "adapters" / "hue"))
    assert len(made) == 2 * modules, "one alignment for inputs and one for outputs"
    main([*words, "--search.name", "again"])
    assert len(made) == 2 * modules, "the cache on disk has them"


def test_a_merge_that_fails_is_passed_over_and_said_and_not_tried_again(run, measured, capsys, monkeypatch):
    whole = Merger.merge

    def merge(merger, adapters, **options):
        if merger.coefficients == 2.0:
            raise SheetbendError("merging q_proj overflows")
        return whole(merger, adapters, **options)

    monkeypatch.setattr(Merger, "merge", merge)
    words = [*run[1], "--search.over", "{coefficients: [0.5, 2.0]}", "--test_after_fit", "false"]
    main(words)
    assert "passed over: mean coefficients=2: merging q_proj overflows" in capsys.readouterr().out
    found = {(row["merge"], row["coefficients"]): row for row in rows(run[0] / "searches" / "grid")}
    assert found["mean", "2.0"]["normalised"] == "" and "overflows" in found["mean", "2.0"]["failed"]
    assert float(found["mean", "0.5"]["normalised"]) > 0
    main(words)
    assert measured == [4]
    nothing = [*run[1], "--search.over", "{coefficients: [2.0]}", "--search.name", "none"]
    assert "no candidate of knots-ties could be merged: merging q_proj overflows" in refused(capsys, *nothing)


def test_a_study_that_others_have_finished_is_taken_over_whole(run, measured, tmp_path, capsys):
    pytest.importorskip("optuna")
    words = [*run[1], "--search.strategy", "optuna", "--search.trials", "3", "--test_after_fit", "false"]
    words += ["--search.storage", str(tmp_path / "shared.journal")]
    main(words)
    count = sum(measured)
    shutil.copytree(run[0] / "adapters", tmp_path / "other" / "adapters")
    main([*words, "--trainer.default_root_dir", str(tmp_path / "other")])
    assert sum(measured) == count
    first, second = (
        json.loads((root / "searches" / "optuna" / "candidates.json").read_text())
        for root in (run[0], tmp_path / "other")
    )
    assert (
        sorted(map(str, first["candidates"])) == sorted(map(str, second["candidates"]))
        and len(first["candidates"]) == count
    )
    assert (run[0] / "searches/optuna/best.yaml").read_text() == (
        tmp_path / "other/searches/optuna/best.yaml"
    ).read_text()


def test_a_search_that_cannot_begin_leaves_no_folder(run, monkeypatch, capsys):
    words = [*run[1], "--search.strategy", "optuna"]
    before = tree(run[0])
    if importlib.util.find_spec("optuna"):
        assert "cannot be opened" in refused(capsys, *words, "--search.storage", str(run[0]))
        assert tree(run[0]) == before and not (run[0] / "searches").exists()
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(LoRATasks, "build", lambda *args, **options: pytest.fail("it is said before work begins"))
    assert "needs the package optuna; install it with" in refused(capsys, *words)
    assert tree(run[0]) == before and not (run[0] / "searches").exists()


def test_two_processes_do_not_search_in_one_folder(run, capsys):
    with alone(run[0] / "searches" / "grid"):
        assert "another process works in" in refused(capsys, *run[1])


def test_a_run_folder_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, *run[1], "--model.adapters", str(run[0] / "adapters" / "{task}"),
                   "--trainer.default_root_dir", str(tmp_path / "file"))  # fmt: skip
    assert "file" in line


def test_what_cannot_be_normalised_can_be_searched_by_its_mean(tmp_path):
    records = Records(tmp_path, {})
    finetuned = Score("finetuned", "cola", "matthews", 0.0, 9)
    candidate = Candidate("ties", {"coefficients": 0.5, "finish": None}, "what", {"coefficients": 0.5})
    records.add([Record(candidate, (Score("ties", "cola", "matthews", 0.3, 9),), 0.1)], [finetuned])
    records.write_table(["normalised", "mean"])
    (row,) = rows(tmp_path)
    assert (row["normalised"], row["mean"], row["cola"], row["finish"]) == ("", "0.3", "0.3", "None")
    assert records.score(candidate, "mean") == 0.3
    with pytest.raises(SheetbendError, match="normalised cannot be computed"):
        records.score(candidate, "normalised")
