"""Which runs are averaged, and which stand side by side."""

import pytest

from launch.reporting.groups import MEAN, NORMALISED, grouped
from launch.reporting.runs import read_runs
from mergers.errors import SheetbendError
from tests.launch.reporting.fabricated import LEVELS, around, make_config, make_results, write, write_seeds


def groups_of(*folders):
    return grouped(read_runs(folders)[0])


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    folders = write_seeds(tmp_path, around(0.1, 0.12, 0.08))
    (group,) = groups_of(*folders)
    assert (group.label, [run.seed for run in group.runs]) == (tmp_path.name, [0, 1, 2])
    found = group.spread(MEAN, "knots-ties")
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.7), pytest.approx(0.02), 3)
    assert group.ranking(NORMALISED) == ["knots-ties", "ties"]
    assert groups_of(tmp_path) == [group]  # a folder of runs stands for them


def test_adapters_that_differ_by_the_seed_make_no_difference_and_others_do(tmp_path):
    for seed in (0, 1):
        config = make_config(seed, adapters=f"runs/lora-{seed}/adapters/{{task}}")
        write(tmp_path / "a" / f"lora-{seed}", make_results(seed=seed), config)
    config = make_config(2, adapters="elsewhere/lora-2/adapters/{task}")
    write(tmp_path / "a" / "lora-2", make_results(seed=2), config)
    first, second = groups_of(tmp_path / "a")
    assert [run.seed for run in first.runs] == [0, 1] and first.label == "lora"
    assert [run.seed for run in second.runs] == [2] and second.label == "lora-2"


@pytest.mark.parametrize("changed", [{"rank": 4}, {"backbone": "other"}, {"modules": ("q_proj",)}])
def test_runs_that_differ_in_more_stand_side_by_side(tmp_path, changed):
    write_seeds(tmp_path / "one", around(0.1, 0.1))
    write_seeds(tmp_path / "two", around(0.1, 0.1), **changed)
    assert [(group.label, group.seeds) for group in groups_of(tmp_path / "one", tmp_path / "two")] == [
        ("one", 2),
        ("two", 2),
    ]


def test_other_test_examples_are_not_averaged(tmp_path):
    for seed, prints in enumerate("ffe"):
        write(tmp_path / f"seed-{seed}", make_results(seed=seed, prints=prints), make_config(seed))
    assert [[run.seed for run in group.runs] for group in groups_of(tmp_path)] == [[0, 1], [2]]


def test_without_a_config_the_merges_settings_count(tmp_path):
    write(tmp_path / "a", make_results(seed=0))
    write(tmp_path / "b", make_results(seed=1))
    write(tmp_path / "c", make_results(seed=2, described={"ties": "Ties(density=0.9), in Full space"}))
    assert [group.seeds for group in groups_of(tmp_path)] == [2, 1]


def test_the_same_seed_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, make_results(seed=3), make_config(3))
    with pytest.raises(SheetbendError, match="have the same settings and seed 3; give one of them"):
        groups_of(tmp_path)


def test_parts_join_their_run_under_names_of_their_own(tmp_path):
    write(tmp_path, make_results(), make_config())
    learned = make_results(LEVELS | {"adarank-ta-start": 0.65, "adarank-ta": 0.75})
    write(tmp_path / "adaptations" / "adarank-ta", learned, make_config() | {"adaptation": {"start": "cart"}})
    better = {"ties": "Ties(density=0.4), in Full space", "knots-ties": "Ties(density=0.2), in KnOTS space"}
    searched = make_results(LEVELS | {"ties": 0.65}, described=better)
    write(tmp_path / "searches" / "grid", searched)
    (tmp_path / "adaptations" / "half").mkdir()
    (group,) = groups_of(tmp_path)
    assert group.merged == ("ties", "knots-ties", "ties [grid]", "adarank-ta-start", "adarank-ta")
    assert [group.kind(name) for name in group.merged] == ["run", "run", "searched", "start", "learned"]
    assert group.description("ties [grid]") == better["ties"]
    assert group.spread(MEAN, "ties [grid]").mean == pytest.approx(0.65)
    assert group.ranking(MEAN)[0] == "adarank-ta" and group.ranking(MEAN, ["run", "searched"])[0] == "knots-ties"
    assert group.runs[0].unread == ("adaptations/half",)


def test_parts_of_other_adapters_or_examples_stand_apart(tmp_path):
    write(tmp_path, make_results(), make_config())
    write(tmp_path / "searches" / "adapters", make_results(LEVELS | {"finetuned": 0.9, "ties": 0.1}))
    write(tmp_path / "searches" / "examples", make_results(LEVELS | {"ties": 0.1}, prints="e"))
    groups = groups_of(tmp_path)
    assert [group.label for group in groups] == [tmp_path.name, "adapters", "examples"]
    assert groups[0].merged == ("ties", "knots-ties") and groups[0].spread(MEAN, "ties").mean == pytest.approx(0.6)


def test_searches_of_several_seeds_are_one_group_whatever_they_found(tmp_path):
    folders = [tmp_path / f"seed-{seed}" / "searches" / "grid" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        described = {"ties": f"Ties(density=0.{seed + 2}), in Full space"}
        write(folder, make_results(seed=seed, described=described), make_config(seed))
        (folder / "candidates.json").write_text("{}")
    (group,) = groups_of(*folders)
    assert group.seeds == 2 and (group.kind("ties"), group.kind("finetuned")) == ("searched", "run")
    each = "seed 0: Ties(density=0.2), in Full space; seed 1: Ties(density=0.3), in Full space"
    assert group.uneven("ties") and group.description("ties") == each


def test_adaptations_given_by_themselves_know_what_was_learned(tmp_path):
    for seed in (0, 1):
        learned = make_results(LEVELS | {"mine-start": 0.9, "mine": 0.75}, seed)
        write(tmp_path / f"seed-{seed}" / "adaptations" / "mine", learned, make_config(seed))
    (group,) = groups_of(*tmp_path.glob("seed-*/adaptations/mine"))
    assert [group.kind(name) for name in group.merged] == ["run", "run", "start", "learned"]
    assert group.starts == {"mine": "mine-start"} and "mine-start" not in group.shown
    assert group.ranking(MEAN) == ["mine", "knots-ties", "ties"]


def test_a_folder_with_searches_alone_is_a_run(tmp_path):
    write(tmp_path / "searches" / "grid", make_results())
    (group,) = groups_of(tmp_path)
    assert group.label == "grid" and group.merged == ("ties", "knots-ties")
