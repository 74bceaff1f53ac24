"""Accuracy against the number of merged tasks: which subsets, what is measured of them, and how it is summed up."""

import itertools

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.label_space import joint_labels
from launch.analysing.tasks import cut, subsets
from launch.cli import main
from launch.sweeps import Sweeps
from mergers import Merger
from tests.launch.merging import tree
from tests.stand_ins import TASKS as STAND_INS

TASKS = ("hue", "tint", "shade")


def test_every_subset_is_measured_as_a_test_of_its_tasks_alone_measures_it(run, rows, tmp_path, capsys):
    folder, words = run
    before = tree(folder)
    main([*words("tasks"), "--analysis.split", "val"])
    printed = capsys.readouterr().out
    own = folder / "analyses" / "tasks"
    assert "4 subsets of 2 to 3 tasks x 2 merges = 8 merged models" in printed and f"{own}: tasks.png" in printed
    assert {path: content for path, content in tree(folder).items() if own not in path.parents} == before
    found = {(row["merge"], row["subset"], row["task"], row["metric"]): float(row["value"])
             for row in rows(own / "tasks.csv")}  # fmt: skip
    wanted = ["+".join(one) for count in (2, 3) for one in itertools.combinations(TASKS, count)]
    assert list(dict.fromkeys(subset for _, subset, *_ in found)) == wanted
    main(["validate", *words()[1:], "--data.tasks", "[tint, shade]"])
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    for merge in ("pretrained", "mean", "knots-ties"):
        for column, task in enumerate(("tint", "shade")):
            assert f"{100 * found[merge, 'tint+shade', task, 'accuracy']:.1f}" == shown[merge][column]
    value = (found["mean", "hue+shade", task, "normalised"] for task in ("hue", "shade"))
    assert found["mean", "hue+shade", "mean", "normalised"] == pytest.approx(sum(value) / 2)
    assert ("pretrained", "hue+shade", "all", "joint_hits@1") not in found
    assert 0 <= found["mean", "hue+shade", "all", "joint_hits@1"] <= 1
    summed = {(row["merge"], row["tasks"], row["metric"]): row for row in rows(own / "tasks_mean.csv")}
    pairs = [found["mean", subset, "mean", "normalised"] for subset in wanted[:3]]
    row = summed["mean", "2", "normalised"]
    assert float(row["mean"]) == pytest.approx(sum(pairs) / 3)
    half = 4.302653 * torch.tensor(pairs, dtype=torch.float64).std().item() / 3**0.5
    assert float(row["high"]) - float(row["low"]) == pytest.approx(2 * half, rel=1e-6)
    assert summed["mean", "3", "normalised"]["low"] == ""  # one subset has no interval
    events = EventAccumulator(str(own / "tensorboard" / "mean"))
    events.Reload()
    assert [event.step for event in events.Scalars("tasks/normalised")] == [2, 3]
    report = EventAccumulator(str(own / "tensorboard" / "report"))
    report.Reload()
    assert report.Tags()["images"] == ["tasks"]


def test_as_many_sweeps_as_memory_asks_for_give_the_same(run, capsys, monkeypatch):
    main(run[1]("tasks"))
    whole = (run[0] / "analyses" / "tasks" / "tasks.csv").read_bytes()
    monkeypatch.setattr(Sweeps, "room", lambda sweeps, bytes_each: 3)
    main(run[1]("tasks"))
    assert "in 4 sweeps" in capsys.readouterr().out
    assert (run[0] / "analyses" / "tasks" / "tasks.csv").read_bytes() == whole


def test_coefficients_of_each_task_are_cut_to_the_subset(run, rows, tmp_path):
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    numbers = {"hue": 0.1, "tint": 0.5, "shade": 1.0}
    sums = {"a": numbers, "b": list(numbers.values())}
    mergers = {name: {"method": "task_arithmetic", "coefficients": given} for name, given in sums.items()}
    config["trainer"]["callbacks"][0]["init_args"]["mergers"] = mergers
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(run[1]("tasks"))
    found = rows(run[0] / "analyses" / "tasks" / "tasks.csv")
    first, second = ([{**row, "merge": ""} for row in found if row["merge"] == merge] for merge in "ab")
    assert first == second
    merger = Merger(coefficients=[0.1, 0.5, 1.0])
    assert cut(merger, ("hue", "shade"), TASKS).coefficients == [0.1, 1.0]
    assert cut(Merger(coefficients=0.4), ("hue",), TASKS).coefficients == 0.4


def test_a_sample_of_subsets_is_seeded_and_holds_none_twice():
    tasks = [f"t{number}" for number in range(8)]
    drawn = subsets(tasks, 10, seed=0)
    by_size = {count: [one for one in drawn if len(one) == count] for count in range(2, 9)}
    assert [len(by_size[count]) for count in by_size] == [10, 10, 10, 10, 10, 8, 1]
    assert len(set(drawn)) == len(drawn) and all(list(one) == sorted(one, key=tasks.index) for one in drawn)
    assert drawn == subsets(tasks, 10, seed=0) != subsets(tasks, 10, seed=1)
    assert len(subsets(tasks, None, seed=0)) == 2**8 - 9
    assert len(subsets([f"t{number}" for number in range(46)], 2, seed=0)) == 2 * 44 + 1


def test_labels_of_other_tasks_do_not_compete():
    space = joint_labels([STAND_INS[task][0] for task in TASKS])
    logits = torch.arange(10.0).view(2, 5)
    assert space.among(logits, ["hue"])[:, :3].equal(logits[:, :3])
    assert space.among(logits, ["hue"])[:, 3:].isinf().all()
    assert space.among(logits, ["shade", "tint"]).equal(logits)  # tint has the labels of hue
