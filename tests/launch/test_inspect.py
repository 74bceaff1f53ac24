"""`sheetbend inspect` as it is typed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launch.cli import main
from launch.commands.inspect import meaning
from mergers import Adapter, DenseUpdate, LowRankUpdate, load_adapter, save_adapter
from mergers.analysis import analyse

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"layers.0.q_proj": (24, 16), "layers.1.q_proj": (24, 16)}


def low_rank(seed, rank=3, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        module: LowRankUpdate(
            torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator), scale
        )
        for module, (rows, columns) in SHAPES.items()
    }


@pytest.fixture
def adapters(tmp_path):
    paths = []
    for seed, name in enumerate(("pets", "cars", "food")):
        save_adapter(Adapter(low_rank(seed, rank=2 + seed), name, base_model="org/base"), tmp_path / "runs" / name)
        paths.append(str(tmp_path / "runs" / name))
    save_file({"score.weight": torch.ones(2, 3)}, tmp_path / "runs" / "food" / "head.safetensors")
    return paths


def run(capsys, *words):
    main(["inspect", *map(str, words)])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, words)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("sheetbend: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_tables_hold_the_numbers_of_the_library(adapters, capsys):
    out = run(capsys, *adapters)
    loaded = [load_adapter(path) for path in adapters]
    found = analyse(loaded)
    for adapter in loaded:
        (row,) = [line for line in out.splitlines() if line.startswith(f"{adapter.name} ")]
        assert f" {found.norm(adapter.name):.4g} " in row and adapter.content_hash()[:8] in row
        assert f" {found.effective_rank(adapter.name):.1f} " in row
    for pair in found.pairs:
        (row,) = [line for line in out.splitlines() if line.startswith(f"{pair.first}, {pair.second} ")]
        assert f" {pair.cosine:.3f} " in row and f" {pair.sign_conflict:.1%} " in row
        assert f" {pair.inputs:.3f} ({pair.inputs_by_chance:.3f}) " in row
    assert "base model: org/base" in out
    assert [line for line in out.splitlines() if line.startswith("food ") and " yes" in line]


def test_modules_one_by_one(adapters, capsys):
    assert "layers.0.q_proj" not in run(capsys, *adapters)
    out = run(capsys, "--by-layer", *adapters)
    assert "modules of layers:" in out
    for module in SHAPES:
        assert out.count(f"\n{module.removeprefix('layers.')} ") == 2  # of adapters, and of pairs


def test_files(adapters, tmp_path, capsys):
    assert run(capsys, *adapters, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv", "--quiet") == ""
    content = json.loads((tmp_path / "a.json").read_text())
    found = analyse([load_adapter(path) for path in adapters])
    assert [entry["name"] for entry in content["adapters"]] == ["pets", "cars", "food"]
    assert content["adapters"][2]["heads"] == ["score.weight"]
    assert content["pairs"][1]["cosine"] == found.pairs[1].cosine
    assert content["pairs"][1]["modules"]["layers.0.q_proj"]["dot"] == found.pairs[1].modules["layers.0.q_proj"].dot
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 + 3)
    assert {(row["first"], row["second"]) for row in rows if row["cosine"]} == {
        ("pets", "cars"),
        ("pets", "food"),
        ("cars", "food"),
    }
    own = next(row for row in rows if (row["first"], row["second"], row["module"]) == ("cars", "", "layers.1.q_proj"))
    assert float(own["norm"]) == found.adapters["cars"]["layers.1.q_proj"].norm


def test_one_adapter_and_names(adapters, capsys):
    out = run(capsys, f"mine={adapters[0]}")
    assert "mine " in out and "give two or more" in out
    assert "p, q" in run(capsys, *adapters[:2], "--names", "p", "q")


def test_adapters_of_different_modules_are_compared_where_they_can_be(adapters, tmp_path, capsys, wide):
    part = {"layers.0.q_proj": low_rank(5)["layers.0.q_proj"]}
    save_adapter(Adapter(part, "part", base_model="org/other"), tmp_path / "part")
    out = run(capsys, adapters[0], tmp_path / "part")
    assert "1 modules are not in all adapters in one shape, and not compared: layers.1.q_proj" in out
    assert "base model of part: org/other" in out and "note: the base models differ" in out


def test_adapters_of_nothing_in_common_are_not_compared(adapters, tmp_path, capsys):
    save_adapter(Adapter({"elsewhere": low_rank(5)["layers.0.q_proj"]}, "apart"), tmp_path / "apart")
    out = run(capsys, adapters[0], tmp_path / "apart", "--by-layer")
    assert "no module in common" in out
    assert "orthogonal" not in out and "conflict" not in out


def said(*adapters):
    return " ".join(meaning(analyse(adapters)))


def times(updates, factor):
    return {module: update.scaled(factor) for module, update in updates.items()}


def test_the_last_lines_say_what_it_means():
    one = Adapter(low_rank(0), "one")
    assert "nearly orthogonal" in said(*(Adapter(dense(seed), str(seed)) for seed in range(3)))
    assert "1/3 of it" in said(*(Adapter(dense(seed), str(seed)) for seed in range(3)))
    assert "largely agree" in said(one, Adapter(times(low_rank(0), 1.5), "other"))
    assert "share inputs and outputs" in said(one, Adapter(times(low_rank(0), 1.5), "other"))
    assert "pull against each other (cosine -1.00)" in said(one, Adapter(times(low_rank(0), -1.0), "other"))
    assert "other is 5.0 times as large as one" in said(one, Adapter(times(low_rank(0), 5.0), "other"))
    assert "other changes nothing" in said(one, Adapter(times(low_rank(0), 0.0), "other"))


def dense(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"q": DenseUpdate(torch.randn(80, 60, generator=generator))}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "ADAPTER missing; see sheetbend inspect --help"),
        (["nowhere"], "nowhere"),
        (["{a}", "{a}"], "is given twice"),
        (["{a}", "--by-layr"], "unknown option --by-layr (did you mean --by-layer?)"),
        (["{a}", "--json", "no/such/folder/x.json"], "--json no/such/folder/x.json cannot be written"),
        (["{a}", "--csv", "{a}"], "cannot be written"),
        (["{a}", "--csv"], "--csv has no value"),
    ],
)
def test_what_the_user_can_fix_is_one_line(adapters, capsys, words, expected):
    assert expected in refused(capsys, *(word.format(a=adapters[0]) for word in words))


def test_help_needs_no_torch():
    code = "import sys; from launch.cli import main\ntry: main(['inspect', '--help'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "effective rank" in done.stdout, done.stderr


def test_a_reader_who_has_seen_enough_is_no_fault(adapters, tmp_path):
    command = f"{sys.executable} -m launch inspect --by-layer {' '.join(adapters)} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.startswith("adapter ") and done.stderr == ""
