"""`sheetbend merge` as it is typed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from launch.cli import main
from launch.commands.adapters import in_words_of_options, sources
from launch.commands.words import as_words, split_steps, stacked
from mergers import Adapter, KnOTS, LowRankUpdate, Merger, Star, Ties, load_adapter, save_adapter, save_merged
from mergers.cache import AlignmentCache

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"layers.0.q_proj": (24, 16), "layers.1.q_proj": (24, 16)}


def write_adapter(path, seed=0, rank=3, shapes=SHAPES, base="org/base"):
    generator = torch.Generator().manual_seed(seed)
    updates = {
        module: LowRankUpdate(
            torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        )
        for module, (rows, columns) in shapes.items()
    }
    save_adapter(Adapter(updates, path.name, base_model=base), path)
    return str(path)


@pytest.fixture
def adapters(tmp_path):
    return [write_adapter(tmp_path / "runs" / name, seed) for seed, name in enumerate(("pets", "cars", "food"))]


@pytest.fixture
def merged(tmp_path):
    return tmp_path / "merged"


def run(capsys, *words):
    """Run a command that must work; return what it printed."""
    main([str(word) for word in words])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *words):
    """Run a command that must fail as the user's fault; return its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured
    assert captured.err.startswith("sheetbend: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def same(folder, merger, adapters, **options):
    """Whether a folder holds what the library makes of these adapters, byte for byte."""
    expected = folder.parent / "expected"
    save_merged(merger, [load_adapter(path) for path in adapters], expected, **options)
    name = "adapter_model.safetensors"
    return (folder / name).read_bytes() == (expected / name).read_bytes()


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_command_of_the_readme(adapters, merged, capsys):
    words = ["--space", "knots", "--method", "Ties", "--method.density", "0.2", "--output", merged]
    out = run(capsys, "merge", "--adapters", *adapters, *words)
    assert same(merged, Merger("knots", Ties(density=0.2)), adapters)
    for phrase in ("pets", "cars", "food", "org/base", "Ties(density=0.2), in KnOTS space", "expected  peak memory"):
        assert phrase in out
    assert "rank     9 in 2 modules" in out and "PeftModel.from_pretrained" in out
    assert out.index("expected") < out.index("aligning") < out.index("written")
    passes = [line.partition(":")[0] for line in out.splitlines() if line.startswith("looking")]
    assert passes[:2] == ["looking at all modules", "looking at all modules, pass 2"]
    assert len(set(passes)) == len(passes)


def test_names_in_any_spelling_are_found(adapters, merged, capsys):
    words = ["--method", "task_arithmetic", "--finish=iso", "--coefficients", ".3", "--same_base", "--quiet"]
    assert run(capsys, "merge", "--adapters", *adapters, *words, "--space", "CORE", "--output", merged) == ""
    assert same(merged, Merger("core", "TaskArithmetic", finish="iso", coefficients=0.3), adapters)


def test_transforms_take_the_fields_that_follow_them(adapters, merged, capsys):
    words = ["--transforms", "star", "--transforms.eta", "60", "--transforms", "star", "--transforms.eta=30"]
    run(capsys, "merge", "--adapters", *adapters, *words, "--output", merged)
    assert same(merged, Merger("full", "mean", [Star(60.0), Star(30.0)]), adapters)


@pytest.mark.parametrize(
    ("words", "coefficients"),
    [
        (["0.3"], 0.3),
        (["0.3", "0.5", "1e-1"], [0.3, 0.5, 0.1]),
        (["food=-0.1", "pets=0.3", "cars=0.5"], {"pets": 0.3, "cars": 0.5, "food": -0.1}),
    ],
)
def test_coefficients(adapters, merged, capsys, words, coefficients):
    run(capsys, "merge", "--adapters", *adapters, "--coefficients", *words, "--output", merged)
    assert same(merged, Merger(coefficients=coefficients), adapters)


def test_a_preset_gives_the_starting_values(adapters, merged, capsys):
    run(
        capsys, "merge", "--adapters", *adapters, "--preset", "knots-ties", "--method.density", ".5", "--output", merged
    )
    assert same(merged, Merger("knots", Ties(density=0.5)), adapters)
    words = ["--preset", "core-ties-iso", "--finish", "none", "--method", "mean"]
    out = run(capsys, "merge", "--adapters", *adapters, *words, "--dry-run")
    assert re.search(r"merge +Mean, in Core space\n", out)


def test_layers_of_words():
    preset, user = split_steps(["--method", "Ties", "--method.density=.5", "--transforms", "star"]), split_steps([])
    assert stacked([preset, user]).steps["method"].fields == {"density": ".5"}
    user = split_steps(["--method", "ties", "--method.trim", "local", "--transforms.eta", "3"])
    both = stacked([preset, user])
    assert dict(both.steps["method"].fields) == {"density": ".5", "trim": "local"}
    assert [(step.name, dict(step.fields)) for step in both.transforms] == [("star", {"eta": "3"})]
    assert stacked([preset, split_steps(["--method", "mean"])]).steps["method"].fields == {}
    assert stacked([preset, split_steps(["--transforms", "none"])]).transforms == []
    assert stacked([preset, split_steps(["--transforms", "dare"])]).transforms[0].fields == {}


def test_rank_dtype_and_heads(tmp_path, merged, capsys):
    paths = [write_adapter(tmp_path / name, seed) for seed, name in enumerate("ab")]
    for path in paths:
        save_file({"score.weight": torch.ones(2, 3)}, Path(path) / "head.safetensors")
    words = ["--method", "ties", "--rank", "4", "--dtype", "bfloat16"]
    out = run(capsys, "merge", "--adapters", *paths, *words, "--output", merged)
    assert same(merged, Merger("full", "ties"), paths, rank=4, dtype=torch.bfloat16)
    printed = " ".join(out.split())
    assert "by truncation to rank 4 (largest: layers." in printed and "by rounding to bfloat16" in printed
    assert f"{merged}/heads, each as it was, not merged: a, b" in printed
    assert (merged / "heads" / "a.safetensors").is_file()


def test_into_a_full_model(adapters, tmp_path, merged, capsys):
    base = tmp_path / "base"
    base.mkdir()
    weights = {f"{module}.weight": torch.ones(shape) for module, shape in SHAPES.items()} | {
        "norm.weight": torch.ones(4)
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text("{}")
    out = run(capsys, "merge", "--adapters", *adapters, "--method", "ties", "--into", base, "--output", merged)
    total = Merger("full", "ties").merge([load_adapter(path) for path in adapters]).dense()
    written = load_file(merged / "model.safetensors")
    for module in SHAPES:
        torch.testing.assert_close(written[f"{module}.weight"], 1 + total[module])
    assert "2 changed in a copy of the full model" in out and f'from_pretrained("{merged}")' in out


def test_differences_of_full_checkpoints(tmp_path, merged, capsys):
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        weights = {f"{module}.weight": torch.randn(shape, generator=generator) for module, shape in SHAPES.items()}
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    full = ["--adapters", tmp_path / "one", tmp_path / "two", "--base", tmp_path / "base"]
    line = refused(capsys, "merge", *full, "--output", merged)
    assert "--into FOLDER" in line and "--modules NAME" in line
    run(capsys, "merge", *full, "--rank", 2, "--modules", "q_proj", "--output", merged)
    one, two, base = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "base"))
    for module, update in load_adapter(merged).items():
        wanted = (one[f"{module}.weight"] + two[f"{module}.weight"]) / 2 - base[f"{module}.weight"]
        U, s, Vh = torch.linalg.svd(wanted)
        torch.testing.assert_close(update.dense(), (U[:, :2] * s[:2]) @ Vh[:2], atol=1e-4, rtol=1e-4)
    shutil.rmtree(merged)
    run(capsys, "merge", *full, "--into", tmp_path / "base", "--output", merged)
    for key, weight in load_file(merged / "model.safetensors").items():
        torch.testing.assert_close(weight, (one[key] + two[key]) / 2)
    assert "takes a part of full checkpoints" in refused(
        capsys, "merge", "--adapters", "a", "--modules", "q", "--dry-run"
    )


def test_one_tasks_own_model_is_named(adapters, capsys):
    words = ["--method", "tall-masks", "--for-task", "cars", "--rank", "2", "--dry-run"]
    assert "Full space, for cars alone\n" in run(capsys, "merge", "--adapters", *adapters, *words)


def test_dry_run_writes_nothing(adapters, tmp_path, merged, capsys, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    before = tree(tmp_path)
    words = ["--space", "knots", "--output", merged, "--dry_run"]
    out = run(capsys, "merge", "--adapters", *adapters, *words)
    assert "expected  peak memory" in out and "\nwritten" not in out and out.endswith("nothing was written\n")
    assert "rank 9 at most, exact, float32" in out
    assert tree(tmp_path) == before and not AlignmentCache().entries()


def test_the_cache_is_used_and_changes_no_byte(adapters, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    words = ["merge", "--adapters", *adapters, "--space", "core", "--method", "ties", "--quiet"]
    run(capsys, *words, "--output", tmp_path / "plain", "--cache", "false")
    assert not AlignmentCache().entries()
    run(capsys, *words, "--output", tmp_path / "cold")
    assert len(AlignmentCache().entries()) == len(SHAPES)
    monkeypatch.setattr("mergers.spaces.core.Core.encode", lambda *_: pytest.fail("aligned again"))
    run(capsys, *words, "--output", tmp_path / "warm")
    for name in ("cold", "warm"):
        assert tree_of_names(tmp_path / name) == tree_of_names(tmp_path / "plain")


def tree_of_names(folder):
    return {path.name: content for path, content in tree(folder).items()}


def test_without_a_place_for_the_cache_the_merge_goes_on(adapters, tmp_path, merged, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(capsys, "merge", "--adapters", *adapters, "--space", "knots", "--output", merged)
    assert [str(w.message) for w in caught if "alignments are not cached" in str(w.message)]
    assert same(merged, Merger("knots"), adapters)


def test_a_configuration_has_the_same_words(adapters, tmp_path, merged, capsys):
    words = ["merge", "--adapters", *adapters, "--preset", "knots-dare-ties", "--coefficients", "0.4", "--same-base"]
    printed = run(capsys, *words, "--print_config", "--output", merged)
    settings = yaml.safe_load(printed)
    assert settings["space"]["class_path"] == "mergers.KnOTS" and settings["coefficients"] == 0.4
    (tmp_path / "c.yaml").write_text(printed)
    assert run(capsys, "merge", "--config", tmp_path / "c.yaml", "--print-config") == printed
    run(capsys, "merge", "--config", tmp_path / "c.yaml", "--transforms", "none", "--method.density", "0.3", "--quiet")
    assert same(merged, Merger("knots", Ties(density=0.3), coefficients=0.4), adapters)
    plain = {
        "adapters": adapters,
        "method": "ties",
        "method.density": 0.3,
        "space": "core",
        "coefficients": {"pets": 1, "cars": 0.5, "food": 0},
    }
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    run(capsys, "merge", "-c", tmp_path / "plain.yaml", "--output", tmp_path / "second", "--quiet")
    merger = Merger("core", Ties(density=0.3), coefficients={"pets": 1.0, "cars": 0.5, "food": 0.0})
    assert same(tmp_path / "second", merger, adapters)


def test_words_of_settings_read_back():
    settings = {"transforms": [{"class_path": "mergers.Star", "init_args": {"eta": 5}}, "dare"], "names": ["a", "b"]}
    words = as_words(settings)
    assert words == ["--transforms", "mergers.Star", "--transforms.eta=5", "--transforms", "dare", "--names", "a", "b"]


def test_a_method_of_ones_own(adapters, tmp_path, merged, capsys, monkeypatch):
    (tmp_path / "my_merging.py").write_text(
        "from dataclasses import dataclass\n"
        "from mergers.methods.base import LinearMethod\n"
        "@dataclass(frozen=True)\n"
        "class First(LinearMethod):\n"
        "    weight: float = 1.0\n"
        "    def weights(self, coefficients, survey=None):\n"
        "        return [self.weight] + [0.0] * (len(coefficients) - 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--method", "my_merging.First", "--method.weight", "2", "--output", merged]
    assert "First(weight=2)" in run(capsys, "merge", "--adapters", *adapters, *words)
    first = load_adapter(adapters[1])  # cars, by the order of names
    torch.testing.assert_close(load_adapter(merged)["layers.0.q_proj"].dense(), 2 * first["layers.0.q_proj"].dense())
    settings = yaml.safe_load(run(capsys, "merge", *words, "--print-config"))
    assert settings["method"] == {"class_path": "my_merging.First", "init_args": {"weight": 2.0}}


def test_names_of_adapters(tmp_path, monkeypatch, capsys):
    for path in ("a/x", "b/x", "b/y", "b/deep/x", "c=d"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def names(*items, **options):
        return [source.name for source in sources(items, **options)]

    assert names("a/x", "b/y") == ["x", "y"]
    assert names("a/x", "b/x", "b/y") == ["a-x", "b-x", "y"]
    assert names("a/x", "b/deep/x") == ["a-x", "deep-x"]
    assert names("one=a/x", "b/x") == ["one", "x"]
    assert names("org/model@main", "other/model") == ["org-model", "other-model"]
    assert names("c=d", "t=c=d") == ["c=d", "t"]
    assert names("a/x", "b/x", names=["p", "q"]) == ["p", "q"]
    assert sources(["t=org/model@v1"]) == [("t", "org/model@v1")]
    assert names("a/x/", "./b/y") == ["x", "y"]
    for items, options, expected in (
        (("a/x", "a/x"), {}, "is given twice"),
        (("x=a/x", "b/x"), {}, "two adapters are named 'x'"),
        (("a/x", "b/x"), {"names": ["p"]}, "--names has 1 names for 2 adapters"),
        (("a/x", "b/x"), {"names": ["p", "p"]}, "two adapters are named 'p'"),
    ):
        with pytest.raises(SystemExit):
            sources(items, **options)
        assert expected in capsys.readouterr().err


BAD = [
    ([], "--adapters missing"),
    (["--adapters", "{a}", "{b}"], "--output missing"),
    (["--adapters", "{a}", "{b}", "--output"], "--output has no value"),
    (["--adapters", "--output", "{out}"], "--adapters has no value"),
    (["--adapters", "{a}", "{b}", "--outptu", "{out}"], "unknown option --outptu (did you mean --output?)"),
    (["--adapters", "{a}", "--metod.density", "1"], "unknown option --metod.density (did you mean --method.density?)"),
    (["{a}", "{b}"], "belongs to no option"),
    (["--adapters", "{a}", "{b}", "--method", "tise"], "unknown method 'tise'; known methods: "),
    (["--adapters", "{a}", "{b}", "--method"], "--method has no value"),
    (["--adapters", "{a}", "{b}", "--space", "knot"], "(did you mean 'KnOTS'?)"),
    (["--adapters", "{a}", "{b}", "--method", "ties", "--method.densty", "1"], "(did you mean --method.density?)"),
    (["--adapters", "{a}", "{b}", "--method", "ties", "--method.density", "x"], "--method.density: expected float"),
    (["--adapters", "{a}", "{b}", "--method", "ties", "--method.density", "2"], "Ties density is 2.0"),
    (
        ["--adapters", "{a}", "{b}", "--method", "ties", "--method.trim", "x"],
        "--method.trim: expected one of 'global', 'local', not 'x'",
    ),
    (["--adapters", "{a}", "{b}", "--method", "no.such.Class"], "--method no.such.Class cannot be imported"),
    (["--adapters", "{a}", "{b}", "--method", "mergers.Star"], "mergers.Star is no Method"),
    (["--adapters", "{a}", "{b}", "--transforms", "dare"], "Dare needs a drop_rate; give --transforms.drop_rate"),
    (["--adapters", "{a}", "{b}", "--transforms.eta", "3"], "belongs to no transform: there is none"),
    (["--adapters", "{a}", "{b}", "--finish.cutoff", "3"], "--finish.cutoff belongs to no finish"),
    (["--adapters", "{a}", "{b}", "--preset", "knots-tise"], "knots-ties"),
    (["--adapters", "{a}", "{b}", "--coefficients", "x"], "--coefficients holds 'x'"),
    (["--adapters", "{a}", "{b}", "--coefficients", "nan"], "--coefficients holds nan"),
    (["--adapters", "{a}", "{b}", "--coefficients", "1", "2", "3"], "--coefficients has 3 numbers for 2 tasks"),
    (["--adapters", "{a}", "{b}", "--coefficients", "pets=1", "2"], "with and without a name"),
    (["--adapters", "{a}", "{b}", "--coefficients", "pets=1", "pets=2"], "names 'pets' twice"),
    (["--adapters", "{a}", "{b}", "--coefficients", "pets=1", "cat=2"], "--coefficients names the unknown task 'cat'"),
    (["--adapters", "{a}", "{b}", "--rank", "many"], "--rank: expected whole number, not 'many'"),
    (["--adapters", "{a}", "{b}", "--rank", "0"], "--rank is 0; give a whole number from 1 on"),
    (["--adapters", "{a}", "{b}", "--dtype", "float23"], "--dtype: 'float23' is none of float32, float16, bfloat16"),
    (["--adapters", "{a}", "{b}", "--dry-run", "maybe"], "--dry-run: expected true or false, not 'maybe'"),
    (["--adapters", "{a}", "{b}", "--device", "toaster"], "--device toaster cannot be used"),
    (["--adapters", "{a}", "{b}", "--into", "{a}"], "{a}"),
    (["--adapters", "{a}", "{b}", "--rank", "2", "--into", "{a}"], "--rank is 2, but a full model keeps its own"),
    (["--adapters", "{a}", "{b}", "--for-task", "dogs"], "--for-task is 'dogs'"),
    (
        ["--adapters", "{a}", "{b}", "--method", "ties"],
        "give --rank K, to keep the best approximation of that rank, or --into",
    ),
    (["--adapters", "{a}", "nowhere", "--quiet"], "nowhere"),
    (["--adapters", "{a}", "{a}", "--quiet"], "is given twice"),
    (["--config", "nope.yaml"], "--config nope.yaml does not exist"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=lambda value: " ".join(value)[:60] if value else "none")
def test_what_the_user_can_fix_is_one_line_before_the_work(adapters, tmp_path, merged, capsys, words, expected):
    fill = {"a": adapters[0], "b": adapters[1], "out": merged}
    words = [word.format(**fill) for word in words]
    if len(words) > 3 and not any(word.startswith("--out") for word in words):
        words += ["--output", str(merged)]
    before = tree(tmp_path)
    assert expected.format(**fill) in refused(capsys, "merge", *words)
    assert tree(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_faults_of_a_configuration(tmp_path, capsys):
    for content, expected in (
        ("- a list", "is no mapping of settings"),
        ("a: [", "cannot be read as YAML"),
        ("densty: 1", "unknown option --densty"),
        ("method: {density: 1}", "give a name, or class_path and init_args"),
    ):
        (tmp_path / "c.yaml").write_text(content)
        assert expected in refused(capsys, "merge", "--config", tmp_path / "c.yaml", "--print-config")


def test_adapters_that_do_not_fit(adapters, tmp_path, merged, capsys):
    other = write_adapter(tmp_path / "other", base="org/another")
    part = write_adapter(tmp_path / "part", shapes={"layers.0.q_proj": (24, 16)})
    words = ["--output", merged]
    assert "(--same-base accepts two names of one model)" in refused(
        capsys, "merge", "--adapters", adapters[0], other, *words
    )
    assert "(--missing zero counts those that lack as zero)" in refused(
        capsys, "merge", "--adapters", adapters[0], part, *words
    )
    assert not merged.exists()
    run(capsys, "merge", "--adapters", adapters[0], other, *words, "--same-base")
    out = run(capsys, "merge", "--adapters", adapters[0], part, "--output", tmp_path / "second", "--missing", "zero")
    assert "note: part: has no layers.1.q_proj; counted as zero" in out


@pytest.mark.parametrize("damage", ["truncated", "nan", "empty", "no config"])
def test_a_damaged_adapter(adapters, tmp_path, merged, capsys, damage):
    weights = Path(adapters[1]) / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "nan":
        tensors = load_file(weights)
        next(iter(tensors.values()))[0] = float("nan")
        save_file(tensors, weights)
    elif damage == "empty":
        shutil.rmtree(adapters[1])
        Path(adapters[1]).mkdir()
    else:
        (Path(adapters[1]) / "adapter_config.json").unlink()
    assert "cars" in refused(capsys, "merge", "--adapters", *adapters, "--output", merged)
    assert not merged.exists()


def test_folders_that_would_be_lost(adapters, tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    before = tree(tmp_path)
    for output, expected in (
        (home, "thesis.tex, which would be lost"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        (adapters[0], "pets"),
        (Path(adapters[0]) / "merged", "lie in each other"),
        (tmp_path / "runs", "runs"),
    ):
        for more in ([], ["--overwrite"]):
            assert expected in refused(capsys, "merge", "--adapters", *adapters, "--output", output, *more)
    assert tree(tmp_path) == before


def test_only_a_merge_is_overwritten_and_only_when_asked(adapters, tmp_path, merged, capsys):
    words = ["merge", "--adapters", *adapters, "--output", merged]
    run(capsys, *words)
    before = tree(merged)
    assert "give --overwrite to replace it" in refused(capsys, *words, "--coefficients", "2")
    assert tree(merged) == before
    run(capsys, *words, "--coefficients", "2", "--overwrite")
    assert same(merged, Merger(coefficients=2.0), adapters)


def test_a_folder_that_may_not_be_written(adapters, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.geteuid() == 0:  # root may write anywhere, but for a folder that is marked as immutable
        done = subprocess.run(["chattr", "+i", closed], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("root writes anywhere, and this file system has no immutable folders")
    try:
        line = refused(capsys, "merge", "--adapters", *adapters, "--output", closed / "merged")
        assert "may not be written" in line
        assert not list(closed.iterdir())
    finally:
        subprocess.run(["chattr", "-i", closed], capture_output=True, check=False)
        closed.chmod(0o700)


def test_a_disk_that_fills_up(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        paths = [write_adapter(tmp_path / name, seed, 16, {"q": (800, 800)}) for seed, name in enumerate("ab")]
        line = refused(capsys, "merge", "--adapters", *paths, "--output", disk / "merged")
        assert f"--output {disk}/merged: no space is left" in line
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_too_little_memory(adapters, merged, capsys, monkeypatch):
    monkeypatch.setattr("mergers.preflight._status", lambda name, *_: 1000 if name == "MemAvailable" else 0)
    assert "1.0 kB of memory left, which may not be enough" in run(
        capsys, "merge", "--adapters", *adapters, "--dry-run"
    )

    def allocate(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("mergers.methods.mean.Mean.weights", allocate)
    words = ["--adapters", *adapters, "--output", merged, "--quiet"]
    assert "out of memory; nothing was written" in refused(capsys, "merge", *words)
    assert not merged.exists()


SLOW = """
import sys, time
from launch.cli import main
import mergers.methods.mean as mean
def weights(self, coefficients, survey=None):
    print("merging now", flush=True)
    time.sleep(0.5)
    return [1.0 for _ in coefficients]
mean.Mean.weights = weights
import mergers.preflight
mergers.preflight._seconds = lambda *_: 1.0
main(sys.argv[1:])
"""


def test_ctrl_c_leaves_nothing(tmp_path):
    shapes = {f"layers.{index}.q": (8, 8) for index in range(100)}
    paths = [write_adapter(tmp_path / name, seed, shapes=shapes) for seed, name in enumerate("ab")]
    before = tree(tmp_path)
    command = [sys.executable, "-c", SLOW, "merge", "--adapters", *paths, "--output", str(tmp_path / "merged")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT, text=True
    )
    for line in process.stdout:
        if line == "merging now\n":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted: nothing was written" in out
    assert "Traceback" not in err
    assert tree(tmp_path) == before and not (tmp_path / "merged").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_help_and_mistakes_need_no_torch():
    code = "import sys; from launch.cli import main\ntry: main({words})\nfinally: assert 'torch' not in sys.modules"
    for words, status in ((["merge", "--help"], 0), (["merge", "--outptu", "x"], 2), (["--help"], 0), (["merg"], 2)):
        command = [sys.executable, "-c", code.format(words=words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
        if words == ["merge", "--help"]:
            help_text = done.stdout
    text = re.sub(r"\s+", " ", help_text)
    for phrase in ("--adapters ADAPTER", "Ties(density=0.2", "KnOTS(", "Dare(drop_rate", "Iso(cutoff", "--dry-run"):
        assert phrase in text


def test_every_part_that_is_registered_is_in_the_help():
    from launch.commands.steps import PACKAGES, declared
    from mergers.registry import registered

    for option, (package, base) in PACKAGES.items():
        base_class = getattr(__import__(f"{package}.base", fromlist=[base]), base)
        listed = {entry.name: list(entry.fields) for entry in declared(option)}
        assert listed == {
            name: [f.name for f in cls.__dataclass_fields__.values() if f._field_type.name == "_FIELD"]
            for name, cls in registered(package, base_class).items()
        }
        assert all(entry.summary for entry in declared(option))


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_fit_the_width(adapters, tmp_path, merged, columns):
    long = [write_adapter(tmp_path / "a_task_with_quite_a_long_name", 7), *adapters]
    command = [sys.executable, "-m", "launch", "merge", "--adapters", *long, "--space", "knots", "--output", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert "\x1b" not in done.stdout and done.stderr == ""


@pytest.mark.parametrize("script", ["merge", "inspect", "cache"])
def test_scripts_work_from_any_folder(script, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "launch" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: sheetbend {script} "), done.stderr


def test_messages_of_the_library_speak_of_options():
    """If the library's words change, the ways out that it names must still be found here."""
    sources_of_library = "\n".join(path.read_text() for path in (ROOT / "mergers").rglob("*.py"))
    for phrase in ("give rank=, to keep", "or base_model=, to add", "same_base=True accepts", "missing='zero' counts"):
        assert phrase in sources_of_library.replace('"\n    "', "")
        assert "=" not in in_words_of_options(phrase)


def test_knots_settings(adapters, merged, capsys):
    words = ["--space", "knots", "--space.scale-by-singular-values", "false", "--space.cutoff=1e-5"]
    run(capsys, "merge", "--adapters", *adapters, *words, "--output", merged)
    assert same(merged, Merger(KnOTS(scale_by_singular_values=False, cutoff=1e-5)), adapters)
    assert json.loads((merged / "sheetbend_merge.json").read_text())["adapters"][0]["name"] == "pets"
