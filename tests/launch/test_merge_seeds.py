"""``sheetbend merge --seeds``: the same merge once a seed."""

import shutil

import pytest
import yaml

from launch.cli import main
from mergers import Dare, Merger
from tests.launch.merging import refused, run, same, tree, write_adapter


@pytest.fixture
def seeded(tmp_path):
    """Two adapters of each of two seeds; what names them, and those of seed 1."""
    for seed in (0, 1):
        for number, name in enumerate(("pets", "cars")):
            write_adapter(tmp_path / f"seed-{seed}" / name, 10 * seed + number)
    named = [str(tmp_path / "seed-{seed}" / name) for name in ("pets", "cars")]
    return named, [name.format(seed=1) for name in named]


def test_each_merge_is_that_of_its_adapters_with_its_seed(seeded, tmp_path, capsys):
    named, second = seeded
    words = [
        "merge",
        "--adapters",
        *named,
        "--transforms",
        "dare",
        "--transforms.drop_rate",
        "0.5",
        "--seeds",
        "0",
        "1",
    ]
    words += ["--rank", "3", "--output", str(tmp_path / "m-{seed}")]
    printed = run(capsys, *words, "--dry-run")
    assert "seed 1 (2 of 2): " in printed and not (tmp_path / "m-0").exists()
    printed = run(capsys, *words)
    assert f"seed 0 (1 of 2): {tmp_path / 'm-0'}" in printed
    assert same(tmp_path / "m-1", Merger(transforms=[Dare(0.5, seed=1)]), second, rank=3)
    before = tree(tmp_path)
    shutil.rmtree(tmp_path / "m-1")  # as if it had been interrupted
    printed = run(capsys, *words)
    assert f"{tmp_path / 'm-0'} is finished and unchanged; --overwrite repeats it" in printed
    assert tree(tmp_path) == before
    assert f"{tmp_path / 'm-0'} holds an earlier merge" in refused(capsys, *words, "--coefficients", "2")
    assert tree(tmp_path) == before
    assert run(capsys, *words, "--overwrite", "--quiet") == ""


def test_printed_settings_read_back_as_the_same_series(seeded, tmp_path, capsys):
    words = ["merge", "--adapters", *seeded[0], "--preset", "dare-ties", "--rank", "2", "--seeds", "4", "5"]
    settings = run(capsys, *words, "--print-config")
    assert yaml.safe_load(settings)["seeds"] == [4, 5]
    (tmp_path / "merge.yaml").write_text(settings.replace("{seed}", "1"))
    run(capsys, "merge", "--config", tmp_path / "merge.yaml", "--output", tmp_path / "m-{seed}")
    weights = [(tmp_path / f"m-{seed}" / "adapter_model.safetensors").read_bytes() for seed in (4, 5)]
    assert weights[0] != weights[1]  # of the same adapters under other masks


def test_a_merge_that_fails_is_named_and_those_before_it_are_kept(seeded, tmp_path, capsys):
    words = ["merge", "--adapters", *seeded[0], "--seeds", "0", "2", "--output", str(tmp_path / "m-{seed}")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.startswith("sheetbend: error: seed 2: ")
    assert "seed-2" in captured.err and captured.err.count("\n") == 1
    assert (tmp_path / "m-0" / "adapter_model.safetensors").is_file() and not (tmp_path / "m-2").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "1", "1"], "--seeds has 1 twice"),
        (["--seeds", "-1"], "--seeds has -1; give numbers from 0"),
        (["--seeds"], "--seeds has no value"),
        (["--seeds", "0", "1", "--output", "merged"], "--output merged would be written 2 times; put {seed} into"),
        (
            ["--seeds", "0", "--transforms", "dare", "--transforms.seed", "3"],
            "--transforms.seed 3 stands beside --seeds",
        ),
    ],
)
def test_seeds_that_make_no_series_are_one_line(seeded, tmp_path, capsys, words, expected):
    before = tree(tmp_path)
    output = [] if "--output" in words else ["--output", str(tmp_path / "m-{seed}")]
    assert expected in refused(capsys, "merge", "--adapters", *seeded[0], *output, *words)
    assert tree(tmp_path) == before


def test_seeds_that_change_nothing_are_refused(seeded, tmp_path, capsys):
    words = ["--adapters", *seeded[1], "--output", str(tmp_path / "m-{seed}"), "--seeds", "0", "1"]
    assert "--seeds would change nothing" in refused(capsys, "merge", *words)
