"""`sheetbend merge` as it is typed."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from launch.commands.adapters import in_words_of_options, sources
from launch.commands.words import as_words, split_steps, stacked
from mergers import KnOTS, Merger, Star, Ties, load_adapter
from mergers.cache import AlignmentCache
from tests.launch.merging import ROOT, SHAPES, refused, run, same, tree, write_adapter


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


def test_rank_dtype_and_heads(tmp_path, merged, capsys, wide):
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


def test_into_a_full_model(adapters, tmp_path, merged, capsys, wide):
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
