"""The other kinds of analysis, what all of them refuse, and what becomes of an interrupted one."""

import doctest
import itertools

import pytest
import torch
import yaml
from transformers import CLIPModel

from callbacks import interference_plot
from launch import cli
from launch.analysing import cka, rank
from launch.analysing.cka import KNOTS, LORA, WHOLE
from launch.cli import main
from mergers import KnOTS, load_adapter
from tests.launch.merging import tree
from tests.launch.test_cli import refused
from tests.lightning_modules.adapting import lora_clip, perturbed
from tests.mergers.test_alignment import slow_cka

TASKS = ("hue", "tint", "shade")


def test_cka_is_of_outputs_on_the_inputs_of_the_pretrained_model(run, rows, tiny_clip, capsys):
    folder, words = run
    main([*words("cka"), "--analysis.examples", "30", "--analysis.split", "val"])
    own = folder / "analyses" / "cka"
    printed = capsys.readouterr().out
    assert "3 tasks, LoRA | LoRA in KnOTS space; 30 examples of each task's val data" in printed
    found = {(row["updates"], row["layer"], row["first"], row["second"]): float(row["cka"])
             for row in rows(own / "cka.csv")}  # fmt: skip
    adapters = [load_adapter(folder / "adapters" / task, name=task) for task in TASKS]
    layer = next(name for name in adapters[0] if name.endswith("layers.1.self_attn.out_proj"))
    inputs = []
    model, data = lora_clip(tiny_clip, TASKS)  # of the same base; its adapters are left out
    owner = next(m for name, m in model.model.named_modules() if name.endswith("layers.1.self_attn.out_proj"))
    owner.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for loader in data.sample_loaders("val", 30):
        for batch in loader:
            with torch.no_grad(), model.model.disable_adapter():
                model(batch.inputs)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in inputs])
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


def test_cka_takes_fully_fine_tuned_models_beside_the_adapters(run, rows, tiny_clip, tmp_path):
    for seed, task in enumerate(TASKS):
        perturbed(CLIPModel.from_pretrained(tiny_clip), seed).save_pretrained(tmp_path / "whole" / task)
    words = run[1]("cka")
    main([*words, "--analysis.whole", str(tmp_path / "whole" / "{task}"), "--analysis.examples", "8"])
    found = rows(run[0] / "analyses" / "cka" / "cka.csv")
    assert list(dict.fromkeys(row["updates"] for row in found)) == [WHOLE, LORA, KNOTS]
    assert all(0 <= float(row["cka"]) <= 1 for row in found)


def test_padding_is_no_input():
    mask = cka.Mask()
    x = torch.arange(12.0).view(2, 3, 2)
    assert mask.rows(x).equal(x.view(6, 2))
    mask.present = torch.tensor([[True, True, False], [True, False, False]])
    assert mask.rows(x).equal(x.view(6, 2)[[0, 1, 3]])
    assert mask.rows(x[:, :1]).equal(x[:, 0])  # of another length: of a decoder, say


def test_interference_needs_no_data_and_is_what_inspect_says(run, rows, tmp_path, capsys, monkeypatch):
    folder, words = run
    monkeypatch.setattr("tests.stand_ins.StandIns.load", None)
    main(words("interference"))
    found = rows(folder / "analyses" / "interference" / "interference.csv")
    adapters = [folder / "adapters" / task for task in TASKS]
    main(["inspect", *map(str, adapters), "--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "all.png")])
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "all.png").read_bytes() == (
        folder / "analyses" / "interference" / "interference.png"
    ).read_bytes()
    inspected = {(row["module"], row["first"], row["second"]): row for row in rows(tmp_path / "all.csv")}
    for row in found:
        if row["layer"] == "all":
            continue
        own = inspected[row["layer"], row["first"], row["second"]]
        if row["measure"] != "energy":
            assert float(row["value"]) == pytest.approx(float(own[row["measure"]]))
    energy = [row for row in found if row["measure"] == "energy"]
    for task in TASKS:
        assert sum(float(row["value"]) for row in energy if row["first"] == task) == pytest.approx(1.0)
    norms = {row["layer"]: float(inspected[row["layer"], "hue", ""]["norm"]) for row in energy if row["first"] == "hue"}
    shares = {row["layer"]: float(row["value"]) for row in energy if row["first"] == "hue"}
    whole = sum(norm**2 for norm in norms.values())
    assert shares == pytest.approx({layer: norm**2 / whole for layer, norm in norms.items()})
    assert doctest.testmod(interference_plot).failed == 0
    capsys.readouterr()


def test_sides_are_what_a_test_of_either_measures(run, rows, tmp_path, capsys):
    main(run[1]("sides"))
    printed = capsys.readouterr().out
    assert "1 merge in KnOTS space x 2 sides = 2 merged models" in printed
    found = {(row["merge"], row["side"], row["task"], row["metric"]): float(row["value"])
             for row in rows(run[0] / "analyses" / "sides" / "sides.csv")}  # fmt: skip
    assert {merge for merge, *_ in found} == {"knots-ties"}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    ties = {"class_path": "mergers.Ties", "init_args": {"density": 0.3}}
    config["trainer"]["callbacks"][0]["init_args"]["mergers"] = {
        side: {"method": ties, "space": {"class_path": "mergers.KnOTS", "init_args": {"concatenate": side}}}
        for side in ("inputs", "outputs")
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(config))
    main(["test", "--config", str(tmp_path / "both.yaml"), "--trainer.default_root_dir", str(tmp_path / "both"),
          "--model.adapters", str(run[0] / "adapters")])  # fmt: skip
    scores = rows(tmp_path / "both" / "results.csv")
    for row in scores:
        if row["variant"] in ("inputs", "outputs") and row["metric"] == "accuracy" and row["task"] in TASKS:
            assert found["knots-ties", row["variant"], row["task"], "accuracy"] == pytest.approx(float(row["value"]))
    each = (found["knots-ties", "outputs", task, "normalised"] for task in TASKS)
    assert found["knots-ties", "outputs", "mean", "normalised"] == pytest.approx(sum(each) / 3)


def test_ranks_are_fitted_once_and_finished_ones_survive_an_interruption(run, rows, capsys, monkeypatch):
    folder, words = run
    own = folder / "analyses" / "rank"
    command = [*words("rank"), "--analysis.ranks", "[1, 2]", "--trainer.max_epochs", "1"]
    fitted, whole = [], cli.main

    def counted(args):
        fitted.append(args[-1])
        if len(fitted) == 2:
            raise SystemExit(130)
        whole(args)

    monkeypatch.setattr(rank.cli, "main", counted)
    with pytest.raises(SystemExit) as stop:
        whole(command)
    assert stop.value.code == 130 and not (own / "rank.csv").exists() and (own / "rank-1" / "results.json").is_file()
    before = tree(own / "rank-1")
    whole(command)
    assert "1 fit of up to 1 epoch on 3 tasks, ranks 2; there already: 1" in capsys.readouterr().out
    assert [name.rpartition("/")[2] for name in fitted] == ["rank-1.yaml", "rank-2.yaml", "rank-2.yaml"]
    assert tree(own / "rank-1") == before
    config = yaml.safe_load((own / "rank-2" / "config.yaml").read_text())["model"]["init_args"]
    assert config["lora"]["r"] == config["lora"]["alpha"] == 2 and config["adapters"] is None
    assert all(update.rank == 2 for update in load_adapter(own / "rank-2" / "adapters" / "hue").values())
    found = rows(own / "rank.csv")
    assert {(row["rank"], row["variant"]) for row in found} == {
        (rank, name) for rank in "12" for name in ("pretrained", "finetuned", "mean", "knots-ties")
    }
    tested = rows(own / "rank-2" / "results.csv")
    value = next(row["value"] for row in tested if (row["variant"], row["task"]) == ("mean", "hue"))
    assert value in [
        row["value"] for row in found if (row["rank"], row["variant"], row["task"]) == ("2", "mean", "hue")
    ]
    whole([*command[:-4], "--analysis.ranks", "[]", "--analysis.runs", f"{{7: {own / 'rank-1'}}}"])
    assert len(fitted) == 3 and {row["rank"] for row in rows(own / "rank.csv")} == {"7"}


@pytest.mark.parametrize(
    ("kinds", "words", "expected"),
    [
        (["task"], [], "analysis.kinds names 'task' (did you mean 'tasks'?); known: tasks, sides, rank, cka, interf"),
        (["cka", "cka"], [], "analysis.kinds names cka twice"),
        ([], [], "analyse what? give one or more of tasks, sides"),
        (["tasks"], ["--analysis.samples", "0"], "analysis.samples is 0; give a number of at least 1"),
        (["cka"], ["--analysis.examples", "-1"], "analysis.examples is -1"),
        (["tasks"], ["--data.tasks", "[hue]"], "data.tasks names hue alone"),
        (["tasks"], ["--trainer.callbacks", "[]"], "trainer.callbacks has no merge to analyse"),
        (["tasks"], ["--analysis.split", "train"], "analysis.split: expected one of test, val, not 'train'"),
        (["cka"], ["--analysis.whole", "nowhere/{task}"], "analysis.whole: nowhere/hue does not exist"),
        (["rank"], ["--analysis.ranks", "[2, 2]"], "analysis.ranks names 2 twice"),
        (["rank"], ["--analysis.ranks", "[]"], "analysis.ranks and analysis.runs are empty"),
        (["rank"], ["--analysis.ranks", "[0]"], "analysis.ranks is 0; give a number of at least 1"),
        (["rank"], ["--analysis.runs", "{4: nowhere}"], "analysis.runs: nowhere, of rank 4, has no results.json"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_nothing_is_written(run, capsys, kinds, words, expected):
    before = tree(run[0])
    assert expected in refused(capsys, *run[1](*kinds), *words)
    assert tree(run[0]) == before


def test_sides_need_a_merge_in_knots_space(run, tmp_path, capsys):
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["mergers"].pop("knots-ties")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "none of mean is; give one with space: knots" in refused(capsys, *run[1]("sides"))
