"""A win is called one only where the seeds bear it."""

import pytest

from launch.reporting.brief import brief
from launch.reporting.groups import grouped
from launch.reporting.runs import read_runs
from launch.reporting.tables import LEVEL, joint_tables, own_table
from tests.launch.reporting.fabricated import LEVELS, around, make_config, make_results, write, write_seeds


def only(folder):
    (group,) = grouped(read_runs([folder])[0])
    return group


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0.1, 0.11, 0.09), "It wins over **ties** by 12.5 points (95 % interval 9.4 to 15.6, paired over 3 seeds)"),
        ((0.1, -0.05, 0.09), "too close to tell (95 % interval"),
        ((0.1, 0.11), "no claim (95 % interval"),
        ((0.1, 0.3), "too close to tell (95 % interval"),
        ((0.1, 0.1, 0.1), "12.5 points above **ties** with each of 3 seeds alike, which does not tell which is better"),
        ((0.1,), "12.5 points above **ties**; one seed cannot tell which is better"),
    ],
)
def test_a_win_needs_three_seeds_and_an_interval_above_zero(tmp_path, gaps, expected):
    write_seeds(tmp_path, around(*gaps))
    text = " ".join(brief(only(tmp_path)))
    assert "**knots-ties**" in text and expected in text
    assert ("It wins" in text) is ("It wins" in expected)
    assert ("3 are needed to claim a win" in text) is (len(gaps) == 2)


def test_a_merge_beyond_the_second_that_is_level_with_the_best_is_named(tmp_path):
    gaps = [(0.010, 0.2), (0.011, -0.1), (0.009, 0.1)]
    write_seeds(tmp_path, [LEVELS | {"ties": 0.7 - near, "noisy": 0.7 - far} for near, far in gaps])
    (line, *_) = brief(only(tmp_path))
    assert "It wins over **ties**" in line and "1 merge in all cannot be told from it: **noisy**." in line


def test_what_is_measured_beside_merges_is_told(tmp_path):
    write_seeds(tmp_path, around(0.1))
    text = " ".join(brief(only(tmp_path)))
    assert "finetuned 80.0 %, pretrained 40.0 %" in text
    assert "**knots-ties**, 87.5 % of finetuned" in text and "57.4 % hits@1" in text


def test_a_learned_merge_is_told_from_those_that_learn_nothing(tmp_path):
    write(tmp_path, make_results(), make_config())
    learned = make_results(LEVELS | {"adarank-ta-start": 0.5, "adarank-ta": 0.75})
    write(tmp_path / "adaptations" / "adarank-ta", learned, make_config())
    lines = brief(only(tmp_path))
    assert lines[0].startswith("Best merge: **adarank-ta**")
    assert lines[1].startswith("Of the merges that are not learned: best merge: **knots-ties**")


def test_knots_ties_is_named_though_it_is_neither_first_nor_second(tmp_path):
    levels = {"pretrained": 0.4, "finetuned": 0.8, "a": 0.7, "b": 0.6, "mine": 0.5}
    described = dict.fromkeys(levels, "x") | {"mine": "Ties(density=0.2), in KnOTS space, coefficient 0.6"}
    write(tmp_path, make_results(levels, described=described), make_config())
    (first, *_) = brief(only(tmp_path))
    assert "above **b**;" in first and "above **mine**;" in first


def test_a_run_without_merges_says_so(tmp_path):
    write(tmp_path, make_results({"pretrained": 0.4, "finetuned": 0.8}), make_config())
    assert brief(only(tmp_path))[-1] == "No merge was tested."


def test_the_best_is_bold_and_what_cannot_be_told_from_it_is_marked(tmp_path):
    per_seed = [(0.60, 0.62, 0.50), (0.66, 0.63, 0.51), (0.60, 0.64, 0.49)]
    levels = [LEVELS | dict(zip(("ties", "knots-ties", "worse"), each, strict=True)) for each in per_seed]
    write_seeds(tmp_path, levels)
    table = own_table(only(tmp_path))
    assert table.header == ("variant", "digits", "scenes", "mean", "norm. mean")
    rows = {row[0].text: row[1] for row in table.rows}
    assert (rows["knots-ties"].text, rows["knots-ties"].bold, rows["knots-ties"].mark) == ("63.0 ± 1.0", True, "")
    assert (rows["ties"].text, rows["ties"].bold, rows["ties"].mark) == ("62.0 ± 3.5", False, LEVEL)
    assert (rows["worse"].bold, rows["worse"].mark) == (False, "")
    assert (rows["finetuned"].text, rows["finetuned"].bold) == ("80.0 ± 0.0", False)
    assert table.parted == (1,)  # a line below the references
    (joint,) = joint_tables(only(tmp_path))
    assert joint.header[1:3] == ("hits@1", "hits@3") and joint.header[-1] == "hits@10 mean"


def test_one_seed_has_no_spread_and_no_marks(tmp_path):
    write_seeds(tmp_path, around(0.001))
    rows = own_table(only(tmp_path)).rows
    assert [row[1].text for row in rows] == ["40.0", "80.0", "60.0", "60.1"]
    assert not any(cell.mark for row in rows for cell in row)


def test_a_merge_that_one_seed_lacks_says_how_many_it_has(tmp_path):
    first, _ = write_seeds(tmp_path, [LEVELS, LEVELS])
    write(first / "adaptations" / "star", make_results(LEVELS | {"star": 0.79}), make_config())
    table = own_table(only(tmp_path))
    (star,) = (row for row in table.rows if row[0].text == "star")
    assert star[1].text == "79.0 (of 1 seed)" and not star[1].bold  # it is no best of two seeds
