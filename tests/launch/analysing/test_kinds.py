"""The other kinds of analysis, what all of them refuse, and what becomes of an interrupted one."""

import csv
import doctest
import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import CLIPModel

import launch.lightning_cli
from callbacks import MergeCallback, ResultsCallback, interference_plot
from callbacks.results import Results
from launch.analysing import cka, interference, rank, sides
from launch.analysing.cka import KNOTS, LORA, WHOLE
from launch.analysing.run import Run
from launch.analysing.settings import Analysis
from launch.cli import main
from launch.sweeps import Sweeps
from lightning_modules import Score
from mergers import KnOTS, Merger, SheetbendError, Ties, save_adapter
from tests.launch.merging import tree
from tests.launch.test_cli import refused
from tests.lightning_modules.adapting import QUIET, lora_clip, perturbed
from tests.mergers.test_alignment import slow_cka

TASKS = ("hue", "tint", "shade")


def rows_of(finding):
    return list(csv.DictReader(io.StringIO(next(iter(finding.files.values())))))


@pytest.fixture
def trainer():
    return Trainer(**QUIET)


@pytest.fixture
def built(tiny_clip):
    """A tiny CLIP with adapters of three tasks, and their data."""
    return lora_clip(tiny_clip, TASKS)


def test_cka_is_of_outputs_on_the_inputs_of_the_pretrained_model(built, trainer, capsys):
    model, data = built
    found = {(row["updates"], row["layer"], row["first"], row["second"]): float(row["cka"])
             for row in rows_of(cka.analyse(trainer, model, data, "val", 30, None))}  # fmt: skip
    assert "3 tasks, LoRA | LoRA in KnOTS space; 30 examples of each task's val data" in capsys.readouterr().out
    adapters = model.adapters()
    layer = next(name for name in adapters[0] if name.endswith("layers.1.self_attn.out_proj"))
    inputs = []
    owner = next(m for name, m in model.model.named_modules() if name.endswith("layers.1.self_attn.out_proj"))
    owner.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for loader in data.sample_loaders("val", 30):
        for batch in loader:
            with torch.no_grad(), model.model.disable_adapter():
                model(batch.inputs)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in inputs])
    assert len(x) == 3 * 30 * 5  # four patches and a class token
    updates = [adapter[layer] for adapter in adapters]
    aligned = KnOTS(scale_by_singular_values=False).encode(updates).coordinates
    for kind, maps in ((LORA, updates), (KNOTS, aligned)):
        for (i, first), (j, second) in itertools.combinations(enumerate(TASKS), 2):
            slow = slow_cka(x @ maps[i].dense().T, x @ maps[j].dense().T)
            assert found[kind, layer, first, second] == pytest.approx(slow, abs=1e-5)
    layers = {name for _, name, *_ in found} - {"mean"}
    assert layers == set(adapters[0])
    each = [found[LORA, name, "hue", "shade"] for name in layers]
    assert found[LORA, "mean", "hue", "shade"] == pytest.approx(sum(each) / len(each))


def test_cka_takes_fully_fine_tuned_models_beside_the_adapters(built, trainer, tiny_clip, tmp_path):
    for task in TASKS:
        perturbed(CLIPModel.from_pretrained(tiny_clip), 0).save_pretrained(tmp_path / "whole" / task)
    found = rows_of(cka.analyse(trainer, *built, "test", 8, str(tmp_path / "whole")))
    assert list(dict.fromkeys(row["updates"] for row in found)) == [WHOLE, LORA, KNOTS]
    whole = [float(row["cka"]) for row in found if row["updates"] == WHOLE]
    assert whole == pytest.approx([1.0] * len(whole))  # three times the same model
    assert min(float(row["cka"]) for row in found if row["updates"] == LORA) < 0.9


def test_padding_is_no_input():
    mask = cka.Mask()
    x = torch.arange(12.0).view(2, 3, 2)
    assert mask.rows(x).equal(x.view(6, 2))
    mask.present = torch.tensor([[True, True, False], [True, False, False]])
    assert mask.rows(x).equal(x.view(6, 2)[[0, 1, 3]])
    assert mask.rows(x[:, :1]).equal(x[:, 0])  # of another length: of a decoder, say


def test_interference_is_what_inspect_says(built, rows, tmp_path):
    adapters = built[0].adapters()
    finding = interference.analyse(adapters)
    for adapter in adapters:
        save_adapter(adapter, tmp_path / adapter.name)
    words = ["inspect", *(str(tmp_path / task) for task in TASKS), "--quiet"]
    main([*words, "--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "all.png")])
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    inspected = {(row["module"], row["first"], row["second"]): row for row in rows(tmp_path / "all.csv")}
    found = rows_of(finding)
    for row in found:
        if row["layer"] != "all" and row["measure"] != "energy":
            own = inspected[row["layer"], row["first"], row["second"]]
            assert float(row["value"]) == pytest.approx(float(own[row["measure"]]), rel=1e-4)
    shares = {row["layer"]: float(row["value"]) for row in found if (row["measure"], row["first"]) == ("energy", "hue")}
    norms = {layer: float(inspected[layer, "hue", ""]["norm"]) for layer in shares}
    whole = sum(norm**2 for norm in norms.values())
    assert shares == pytest.approx({layer: norm**2 / whole for layer, norm in norms.items()})
    assert doctest.testmod(interference_plot).failed == 0


def test_inspect_draws_two_adapters_or_more_to_a_png(tmp_path, capsys):
    for words in (["a", "b", "--plot", str(tmp_path / "a.jpg")], ["a", "--plot", str(tmp_path / "a.png")]):
        assert "draws two adapters or more, to a file that ends in .png" in refused(capsys, "inspect", *words)


def test_sides_are_what_merges_over_either_side_score(built, trainer, capsys):
    model, data = built
    merger = Merger("knots", Ties(density=0.3))
    sweeps = Sweeps(trainer, model, data, "test")
    finding = sides.analyse(sweeps, {"mean": Merger(), "knots-ties": merger})
    assert "1 merge in KnOTS space x 2 sides = 2 merged models" in capsys.readouterr().out
    found = {(row["merge"], row["side"], row["task"], row["metric"]): float(row["value"]) for row in rows_of(finding)}
    own = {side: Merger(KnOTS(concatenate=side), Ties(density=0.3)) for side in ("inputs", "outputs")}
    sweeps.restore()
    trainer.callbacks[:] = [MergeCallback(own)]
    trainer.test(model, datamodule=data, verbose=False)
    results = Results(tuple(model.scores()))
    assert {side for _, side, *_ in found} == {"inputs", "outputs"}
    for side in own:
        for task in TASKS:
            assert found["knots-ties", side, task, "accuracy"] == pytest.approx(results.value(side, task))
        assert found["knots-ties", side, "mean", "normalised"] == pytest.approx(results.mean_normalised(side))
        assert found["knots-ties", side, "all", "joint_hits@1"] == pytest.approx(results.joint(side, 1))


CONFIG = {
    "model": {"init_args": {"lora": {"r": 16, "alpha": 32, "dropout": 0.1}, "adapters": "somewhere"}},
    "trainer": {"default_root_dir": "runs/a", "max_epochs": 3},
    "overwrite": True,
    "analysis": {"kinds": ["rank"]},
    "search": None,
}


@pytest.fixture
def fitted(monkeypatch):
    """The ranks whose fits are begun; the second one is interrupted."""
    ranks, stops = [], [None, 130, None]

    class Fit:
        def __init__(self, words):
            config = words["fit"]
            ranks.append(config["model"]["init_args"]["lora"]["r"])
            if status := stops.pop(0) if stops else None:
                raise SystemExit(status)
            scores = [Score(name, task, "accuracy", value / ranks[-1], 10)
                      for name, value in (("finetuned", 1.0), ("ties", 0.5)) for task in TASKS]  # fmt: skip
            shown = ResultsCallback()
            shown.results = Results(tuple(scores))
            self.trainer, self.output = SimpleNamespace(callbacks=[shown]), Path(config["trainer"]["default_root_dir"])
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "results.json").write_text(shown.results.to_json())

    monkeypatch.setattr(launch.lightning_cli, "SheetbendCLI", Fit)
    return ranks


def test_ranks_are_fitted_once_and_finished_ones_survive_an_interruption(fitted, tmp_path, capsys):
    settings = Analysis(["rank"], ranks=[1, 2])
    with pytest.raises(SystemExit) as stop:
        rank.analyse(settings, CONFIG, TASKS, tmp_path, overwrite=False)
    assert stop.value.code == 130
    assert "stopped in rank 1 (2 of 2); finished and kept: rank 2" in capsys.readouterr().out
    finding = rank.analyse(settings, CONFIG, TASKS, tmp_path, overwrite=False)
    printed = capsys.readouterr().out
    assert "analysis rank: a fit of up to 3 epochs for rank 2, 1, on 3 tasks" in printed
    assert f"rank 2 (1 of 2): {tmp_path / 'rank-2'} is finished and unchanged" in printed
    assert fitted == [2, 1, 1]
    found = {(row["rank"], row["variant"], row["task"], row["metric"]): float(row["value"]) for row in rows_of(finding)}
    assert list(dict.fromkeys(key[0] for key in found)) == ["1", "2"]
    assert found["2", "finetuned", "mean", "accuracy"] == 0.5 and found["2", "ties", "hue", "normalised"] == 0.5
    assert found["1", "ties", "mean", "accuracy"] == 0.5
    settings = Analysis(["rank"], ranks=[], runs={7: str(tmp_path / "rank-1")})
    assert {row["rank"] for row in rows_of(rank.analyse(settings, CONFIG, TASKS, tmp_path, overwrite=False))} == {"7"}
    with pytest.raises(SheetbendError, match="is of the tasks hue, tint, shade, and this analysis of hue, shade"):
        rank.analyse(settings, CONFIG, ("hue", "shade"), tmp_path, overwrite=False)
    changed = {**CONFIG, "trainer": {**CONFIG["trainer"], "max_epochs": 4}}
    rank.analyse(Analysis(["rank"], ranks=[2]), changed, TASKS, tmp_path, overwrite=False)
    rank.analyse(Analysis(["rank"], ranks=[2]), changed, TASKS, tmp_path, overwrite=True)
    assert fitted == [2, 1, 1, 2, 2]


def test_a_rank_has_the_settings_of_the_run_but_for_its_rank(tmp_path):
    own = rank.entry_of(4, tmp_path).configuration(CONFIG)
    assert own["model"]["init_args"] == {"lora": {"r": 4, "alpha": 4, "dropout": 0.1}, "adapters": None}
    assert own["trainer"] == {"default_root_dir": str(tmp_path / "rank-4"), "max_epochs": 3}
    assert own["test_after_fit"] is True and own["analysis"] is None
    assert CONFIG["model"]["init_args"]["lora"]["r"] == 16


@pytest.mark.slow
def test_a_rank_is_a_run_like_any_other(run, capsys):
    folder, words = run
    main([*words("rank", "interference"), "--analysis.ranks", "[2]", "--trainer.max_epochs", "1"])
    own = folder / "analyses" / "rank"
    assert (own / "rank-2" / "adapters" / "hue" / "adapter_model.safetensors").is_file()
    assert {path.name for path in own.iterdir()} == {
        "config.yaml", "rank-2", "rank.csv", "rank.png", "series.json", "tensorboard"
    }  # fmt: skip
    assert (folder / "analyses" / "interference" / "interference.png").is_file()
    assert f"{own}: rank.png, rank.csv, tensorboard/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kinds": ["task"]}, "analysis.kinds names 'task' (did you mean 'tasks'?); known: tasks, sides, rank, cka, "),
        ({"kinds": ["cka", "cka"]}, "analysis.kinds names cka twice"),
        ({"samples": 0}, "analysis.samples is 0; give a number of at least 1"),
        ({"samples": 1.5}, "analysis.samples is 1.5; give a whole number"),
        ({"examples": -1}, "analysis.examples is -1"),
        ({"kinds": ["rank"], "ranks": [2, 2]}, "analysis.ranks names 2 twice"),
        ({"kinds": ["rank"], "ranks": []}, "analysis.ranks and analysis.runs are empty"),
        ({"ranks": [0]}, "analysis.ranks is 0; give a number of at least 1"),
        ({"runs": {0: "a"}}, "analysis.runs is 0; give a number of at least 1"),
        ({"whole": ""}, "analysis.whole is empty; give fully fine-tuned models"),
        ({"ranks": None}, "analysis.ranks is null; leave it out, or give some, such as [4, 16]"),
        ({"runs": None}, "analysis.runs is null; leave it out, or give some, such as {16: runs/quickstart}"),
    ],
)
def test_what_cannot_be_set_is_one_line(given, expected):
    with pytest.raises(SheetbendError) as error:
        Analysis(**given)
    assert expected in str(error.value) and "\n" not in str(error.value)


MERGERS = {"mean": Merger(), "knots-ties": Merger("knots", "ties")}


@pytest.mark.parametrize(
    ("given", "tasks", "mergers", "expected"),
    [
        ({}, TASKS, MERGERS, "analyse what? give one or more of tasks, sides, rank, cka, interference"),
        ({"kinds": ["interference"]}, ("hue",), MERGERS, "data.tasks names hue alone"),
        ({"kinds": ["tasks"]}, TASKS, {}, "trainer.callbacks has no merge to analyse"),
        ({"kinds": ["sides"]}, TASKS, {"mean": Merger()}, "none of mean is; give one with space: knots"),
        ({"kinds": ["cka"], "whole": "./nowhere/{task}"}, TASKS, {}, "whole: ./nowhere/hue does not exist"),
        (
            {"kinds": ["cka"], "whole": {"hue": "."}},
            TASKS,
            {},
            "analysis.whole names no model of tint; add `tint: PATH`",
        ),
        ({"kinds": ["cka"], "whole": "nowhere"}, TASKS, {}, "whole: nowhere/hue does not exist; give the fine-tuned"),
        (
            {"kinds": ["cka"], "whole": "nowhere/{task}"},  # which may be a hub id
            TASKS,
            {},
            f"analysis.whole: there is no {Path.cwd() / 'nowhere' / 'hue'}, and nowhere/hue is not on this machine",
        ),
        (
            {"kinds": ["cka"], "whole": dict.fromkeys(TASKS, "tests")},
            TASKS,
            {},
            "analysis.whole: tests holds neither model*.safetensors nor adapter_config.json",
        ),
        ({"kinds": ["rank"], "runs": {4: "nowhere"}}, TASKS, {}, "nowhere, of rank 4, has no results.json"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path, given, tasks, mergers, expected):
    trainer = SimpleNamespace(callbacks=[MergeCallback(mergers)])
    data = SimpleNamespace(task_names=tasks)
    with pytest.raises(SheetbendError) as error:
        Run(Analysis(**given), trainer, None, data, None, tmp_path, "").check()
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_runs_of_other_tasks_are_refused_before_any_rank_is_fitted(tmp_path):
    scores = tuple(Score("mean", task, "accuracy", 0.5, 10) for task in ("hue", "shade"))
    (tmp_path / "results.json").write_text(Results(scores).to_json())
    data = SimpleNamespace(task_names=TASKS)
    settings = Analysis(kinds=["rank"], ranks=[2], runs={4: str(tmp_path)})
    with pytest.raises(SheetbendError, match="is of the tasks hue, shade, and this analysis of hue, tint, shade"):
        Run(settings, SimpleNamespace(callbacks=[]), None, data, None, tmp_path, "").check()


def test_no_batches_to_measure_on_are_refused_before_anything_is_loaded(tmp_path):
    trainer = SimpleNamespace(callbacks=[MergeCallback(MERGERS)], limit_test_batches=0, limit_val_batches=1.0)
    data = SimpleNamespace(task_names=TASKS)
    Run(Analysis(kinds=["tasks"], split="val"), trainer, None, data, None, tmp_path, "").check()
    with pytest.raises(SheetbendError, match="limit_test_batches is 0, so nothing would be measured; give 1 or more"):
        Run(Analysis(kinds=["tasks"]), trainer, None, data, None, tmp_path, "").check()


def test_a_mistyped_kind_is_one_line_and_nothing_is_written(run, capsys):
    before = tree(run[0])
    assert "(did you mean 'tasks'?)" in refused(capsys, *run[1]("task"))
    assert tree(run[0]) == before
