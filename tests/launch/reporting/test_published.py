"""Published numbers stand beside those of the same setting, and of no other."""

import json
from pathlib import Path

import pytest
import yaml

from launch.reporting.groups import grouped
from launch.reporting.published import merger_of, published_table, tables
from launch.reporting.runs import read_runs
from mergers import Merger
from tests.launch.reporting.fabricated import make_config, make_results, write

ROOT = Path(__file__).resolve().parents[3]
B32 = "openai/clip-vit-base-patch32"
MODULES = ("q_proj", "k_proj", "v_proj", "out_proj")
V8 = ("stanford_cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
TRAINED = {"backbone": B32, "modules": MODULES}
PUBLISHED = {"backbone": B32, "modules": ("any",), "adapters": "hoffman-lab/KnOTS-ViT-B-32_lora_R16_{task}"}


def knots_ties(density=0.2, coefficient=0.6):
    return f"Ties(density={density}), in KnOTS space, coefficient {coefficient}"


def shown(folder, described=None, tasks=V8, **config):
    """The published table of a run of the experiment in which merges have names of their own."""
    described = described or {"finetuned": "each task through its own adapter", "mine": knots_ties()}
    levels = {"finetuned": 0.8, "mine": 0.5}
    write(folder, make_results(levels, tasks=tasks, described=described), make_config(**config))
    (group,) = grouped(read_runs([folder])[0])
    return published_table(group)


@pytest.mark.parametrize("config", [TRAINED, PUBLISHED])
def test_the_experiment_of_knots_shows_the_papers_numbers(tmp_path, config):
    table, notes = shown(tmp_path, **config)
    rows = {(row[0].text, row[1].text): [cell.text + cell.mark for cell in row[2:]] for row in table.rows}
    assert rows[("mine", "norm. mean")] == ["KnOTS, arXiv 2410.19735", "62.5", "68"]
    assert rows[("mine", "svhn, normalised")] == ["KnOTS, arXiv 2410.19735", "62.5", "53.8†"]
    assert rows[("mine", "joint hits@1")][2] == "46.8†"
    assert rows[("finetuned", "dtd")][2] == "58.3"
    assert len(rows) == 8 + 1 + 8 + 3 and "not in the paper itself" in notes


@pytest.mark.parametrize("changed", [{"rank": 4}, {"backbone": "tiny-clip"}, {"modules": MODULES[:2]}])
def test_another_model_or_rank_shows_none(tmp_path, changed):
    assert shown(tmp_path, **{**TRAINED, **changed}) is None


def test_other_adapters_or_tasks_show_none(tmp_path):
    assert shown(tmp_path / "tasks", tasks=V8[:7], **TRAINED) is None
    assert shown(tmp_path / "unknown", **TRAINED, adapters="runs/mine/adapters/{task}") is None


@pytest.mark.parametrize(
    "described", [knots_ties(0.3), knots_ties(coefficient=0.5), "Ties(density=0.2), in Full space"]
)
def test_another_merge_shows_none(tmp_path, described):  # nor what finetuned has without it
    assert shown(tmp_path, {"mine": described}, **TRAINED) is None


@pytest.mark.parametrize(("rank", "there"), [(16, True), (8, False)])
def test_adapters_on_disk_say_their_rank_themselves(tmp_path, rank, there):
    for task in V8:
        folder = tmp_path / "lora" / task
        folder.mkdir(parents=True)
        content = {"r": rank, "lora_alpha": 16, "target_modules": list(MODULES)}
        (folder / "adapter_config.json").write_text(json.dumps(content))
    found = shown(tmp_path / "run", **TRAINED, adapters=str(tmp_path / "lora" / "{task}"))
    assert (found is not None) is there


def test_a_quickstart_shows_none(tmp_path):
    assert shown(tmp_path, tasks=("digits", "scenes")) is None


def test_a_learned_merge_is_told_by_its_settings(tmp_path):
    entry = {"backbone": B32, "adapters": "tanganke/clip-vit-base-patch32_{task}"}
    settings = yaml.safe_load((ROOT / "configs/experiments/adarank_vit_b32_8_cart.yaml").read_text())["adaptation"]
    for name, change, expected in (("same", {}, ["89.2†"]), ("fewer", {"steps": 100}, [])):
        root = tmp_path / name
        write(root, make_results({"finetuned": 0.8, "other": 0.5}, tasks=V8), make_config(**entry))
        learned = make_results({"finetuned": 0.8, "adarank-cart-start": 0.5, "adarank-cart": 0.7}, tasks=V8)
        config = make_config(**entry) | {"adaptation": settings | change}
        write(root / "adaptations" / "adarank-cart", learned, config)
        (group,) = grouped(read_runs([root])[0])
        found = published_table(group)
        assert [row[-1].text + row[-1].mark for row in (found[0].rows if found else ())] == expected


def mergers_of(name):
    """The merges of a file in configs/mergers, as results describe them."""
    (callback,) = yaml.safe_load((ROOT / "configs" / "mergers" / f"{name}.yaml").read_text())
    found = {}
    for name, merge in callback["init_args"]["mergers"].items():
        steps = {key: _step(value) for key, value in merge.items() if key in ("space", "method", "finish")}
        found[name] = str(
            Merger(
                **steps,
                transforms=[_step(s) for s in merge.get("transforms", [])],
                coefficients=merge.get("coefficients", 1.0),
            )
        )
    return found


def _step(step):
    import mergers

    if isinstance(step, str):
        return step
    return getattr(mergers, step["class_path"].removeprefix("mergers."))(**step.get("init_args", {}))


@pytest.mark.parametrize(
    ("config", "backbone", "without"),
    [
        ("knots_vit_b32", B32, {"core-tsv-iso"}),
        ("knots_vit_l14", "openai/clip-vit-large-patch14", {"core-tsv-iso"}),
        (
            "knots_llama3_8b",
            "meta-llama/Meta-Llama-3-8B",
            {"task-arithmetic", "dare-ties", "knots-dare-ties", "core-tsv-iso"},
        ),
        ("adarank_vit_b32_8", B32, {"tsv"}),
        ("adarank_vit_l14_8", "openai/clip-vit-large-patch14", {"tsv"}),
        ("glue_roberta", "FacebookAI/roberta-base", set()),
    ],
)
def test_the_merges_of_the_experiments_are_known(config, backbone, without):
    known = {
        str(merger_of(row["merge"]))
        for entry in tables()
        if entry["backbone"] == backbone
        for row in entry["rows"]
        if isinstance(row["merge"], dict) and "adaptation" not in row["merge"]
    }
    assert {name for name, text in mergers_of(config).items() if text not in known} == without


def test_the_tables_of_star_hold_all_methods():
    star = [entry for entry in tables() if entry["paper"].startswith("STAR")]
    assert [len(entry["tasks"]) for entry in star] == [10, 13, 9, 13, 12]
    for entry in star:
        assert [set(row["tasks"]) for row in entry["rows"]] == [set(entry["tasks"])] * 6
        by_name = {row["merge"]: row for row in entry["rows"] if isinstance(row["merge"], str)}
        own = by_name["finetuned"]["tasks"]
        told = by_name["pretrained"]
        ratios = [told["tasks"][task] / own[task] for task in own]
        assert 100 * sum(ratios) / len(ratios) == pytest.approx(told["normalised"], abs=0.02)


def test_numbers_of_notes_on_a_paper_keep_their_mark():
    marked = {row.get("second_hand", False) for e in tables() if e["paper"].startswith("AdaRank") for row in e["rows"]}
    assert marked == {True}
    (llama,) = (entry for entry in tables() if entry["backbone"] == "meta-llama/Meta-Llama-3-8B")
    assert [row.get("second_hand", False) for row in llama["rows"]] == [False, True, True]
