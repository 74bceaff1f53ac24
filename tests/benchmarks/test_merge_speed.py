"""The parts of the benchmark, on a model of a few thousand entries."""

import doctest
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import merge_speed, shims, tables, works
from benchmarks.contenders import our_merger
from benchmarks.geometries import GEOMETRIES, write_adapter
from benchmarks.measure import Record, relative_error, run_contender, whole_file, write_adapters, write_updates
from benchmarks.works import CLONES, LABELS, WORKS, Target, adapter_paths, contender_density
from mergers import load_adapter

SCRIPT = Path(merge_speed.__file__)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_adapters(WORKS["smoke-mean"], folder)
    return folder


def run(name, work, root, result=None):
    record = run_contender(name, WORKS[work], root, threads=1, result=result)
    assert not record.error
    return record


def test_doctests():
    for module in (works, shims):
        assert doctest.testmod(module).failed == 0


def test_geometries_are_those_of_the_models():
    assert GEOMETRIES["vit-b-32"].parameters() == 48 * 768**2
    assert GEOMETRIES["vit-l-14"].parameters() == 96 * 1024**2
    llama = GEOMETRIES["llama-3-8b"].modules()
    assert len(llama) == 128
    assert llama["model.layers.31.self_attn.k_proj"] == (1024, 4096)
    assert llama["model.layers.0.self_attn.o_proj"] == (4096, 4096)


def test_adapters_are_peft_folders_with_the_same_bytes_each_time(root, tmp_path):
    first, second, *_ = adapter_paths(root, WORKS["smoke-mean"])
    write_adapter(tmp_path / first.name, GEOMETRIES["tiny"], rank=4)
    weights = "adapter_model.safetensors"
    assert (tmp_path / first.name / weights).read_bytes() == (first / weights).read_bytes()
    assert (second / weights).read_bytes() != (first / weights).read_bytes()
    adapter = load_adapter(first)
    assert {name: update.shape for name, update in adapter.items()} == GEOMETRIES["tiny"].modules()
    assert all(update.rank == 4 and update.scale == 1.0 for update in adapter.values())


@pytest.mark.parametrize("name", WORKS)
def test_every_work_can_be_asked_of_us(name):
    work = WORKS[name]
    assert our_merger(work).space is not None
    assert set(work.contenders) <= set(LABELS)
    assert work.geometry in GEOMETRIES
    assert work.target is None or work.target.contender in (None, *work.contenders)
    if "peft" in work.contenders:
        assert work.peft


def test_the_smoke_group_has_every_contender():
    smoke = {name for work in WORKS.values() if work.group == "smoke" for name in work.contenders}
    assert smoke == set(LABELS)


@pytest.mark.parametrize("entries", [16, 100, 589_824])
def test_contender_density_keeps_as_many_as_they_do(entries):
    density = contender_density(0.2, entries)
    values = torch.arange(1.0, entries + 1)
    threshold = values.kthvalue(entries - int(entries * density)).values
    assert int((values >= threshold).sum()) == int(entries * 0.2)


def test_a_record_has_time_memory_and_a_result_that_is_the_mean(root, tmp_path):
    record = run("ours-applied", "smoke-mean", root, tmp_path / "ours.safetensors")
    assert record.seconds > 0
    assert record.peak_mb >= record.baseline_mb > 10
    adapters = [load_adapter(folder).dense() for folder in adapter_paths(root, WORKS["smoke-mean"])]
    mean = {module: sum(adapter[module] for adapter in adapters) / len(adapters) for module in adapters[0]}
    write_updates(mean, tmp_path / "mean.safetensors")
    assert relative_error(tmp_path / "ours.safetensors", tmp_path / "mean.safetensors")["total"] < 1e-6
    assert sorted(path.name for path in root.iterdir()) == ["tiny-r4"], "scratch folders are removed"


def test_relative_error_counts_all_modules_and_finds_the_worst(tmp_path):
    ones = torch.ones(4, 4)
    theirs = {"a": ones, "b": (2 * ones[:, :1], ones[:1])}
    write_updates(theirs, tmp_path / "theirs")
    assert set(load_file(tmp_path / "theirs")) == {"a", "b.A", "b.B"}
    save_file({"a": 1.5 * ones, "b": 2 * ones}, tmp_path / "ours")
    error = relative_error(tmp_path / "ours", tmp_path / "theirs")
    assert error["worst"] == pytest.approx(0.5)
    assert error["total"] == pytest.approx((0.25 * 16 / (16 + 64)) ** 0.5)
    save_file({"a": ones}, tmp_path / "less")
    with pytest.raises(ValueError, match="b by one contender only"):
        relative_error(tmp_path / "less", tmp_path / "theirs")


def test_a_truncation_is_judged_by_what_it_loses(tmp_path):
    whole = torch.diag(torch.tensor([3.0, 4.0, 4.0]))
    for name, kept in (("ours", [0.0, 4.0, 0.0]), ("theirs", [0.0, 0.0, 4.0]), ("whole", [3.0, 4.0, 4.0])):
        write_updates({"a": torch.diag(torch.tensor(kept))}, tmp_path / name)
    error = relative_error(tmp_path / "ours", tmp_path / "theirs", tmp_path / "whole")
    assert error["ours_lost"] == error["theirs_lost"] == pytest.approx(5 / whole.norm())
    assert error["total"] == pytest.approx(2**0.5)
    equal = row("peft", [1.0], 1, work="ties-r128-vit-b", **error)
    worse = row("peft", [1.0], 1, work="ties-r128-vit-b", **{**error, "ours_lost": 1.02 * error["theirs_lost"]})
    assert not equal.failed
    assert worse.failed


@pytest.mark.parametrize("work", ["smoke-sum", "smoke-sum-r128", "smoke-sum-r32", "smoke-ties-r128"])
def test_peft_and_ours_do_the_same_work(work, root, tmp_path):
    for name in ("ours", "peft"):
        run(name, work, root, tmp_path / name)
    rank = WORKS[work].truncate
    whole = whole_file(tmp_path / "ours") if rank else None
    agreement = relative_error(tmp_path / "ours", tmp_path / "peft", whole)
    assert tables.Row(work, "peft", agreement=agreement).agrees, agreement
    if rank:
        assert {t.shape[0] for name, t in load_file(tmp_path / "ours").items() if name.endswith(".A")} == {rank}


def test_disk_to_disk_is_what_memory_gives(root, tmp_path):
    run("ours", "smoke-knots-ties-llama-disk", root, tmp_path / "disk")
    run("ours", "smoke-knots-ties", root, tmp_path / "memory")
    assert relative_error(tmp_path / "disk", tmp_path / "memory")["total"] < 1e-6


def test_the_stream_is_consumed_without_a_result(root):
    assert run("ours", "smoke-full-ties-llama", root).seconds > 0


def test_a_contender_that_fails_is_one_line_of_the_table(root, tmp_path):
    record = run_contender("knots", WORKS["smoke-knots-ties"], root, threads=1, clone=str(tmp_path))
    assert record.error == "ModuleNotFoundError: No module named 'ft_handlers'"


def test_stand_ins_serve_only_what_is_missing_and_only_inside(tmp_path):
    (tmp_path / "published_code.py").write_text(
        "import json\nimport no_such_package.part\nfrom no_such_package import thing\nfrom no_such_package import Map\n"
    )
    names = {"no_such_package": {"Map": shims.FrozenMap}, "json": {"dumps": None}}
    with shims.imported_from(str(tmp_path), names) as missing:
        import published_code
    assert missing == ["no_such_package"]
    assert published_code.json is json
    assert hash(published_code.Map(a=1)) == hash(published_code.Map(a=1))
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package.thing is called"):
        published_code.thing()
    with pytest.raises(ModuleNotFoundError):
        import another_missing_package  # noqa: F401
    assert str(tmp_path) not in sys.path
    # Whoever goes through sys.modules, as hypothesis does, meets nothing odd.
    assert not hasattr(sys.modules["no_such_package"], "__file__")


def test_without_a_clone_the_row_says_which_option(root):
    row = merge_speed.Bench(root, {}, threads=1).measure(WORKS["smoke-knots-ties"], "knots", runs=1)
    assert row.error == f"not given: {CLONES['knots']}"
    assert not row.failed


def row(contender, seconds, peak_mb, work="knots-ties-vit-b", **agreement):
    records = [Record(seconds=value, cpu_seconds=value, baseline_mb=100, peak_mb=peak_mb) for value in seconds]
    return tables.Row(work, contender, records=records, agreement=agreement)


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_ratios_are_of_medians_and_targets_are_judged():
    rows = [
        row("ours", [1.0, 9.0, 2.0], 500),
        row("ours-applied", [4.0], 500, total=0.0, worst=0.0),
        row("knots", [210.0], 2000, total=1e-7, worst=1e-6),
    ]
    table = cells(tables.figures(rows))
    assert table[2] == ["2", "4", "210"]
    assert table[3][0] == "1..9"
    assert table[7:9] == [["", "2", "105"], ["", "1", "4"]]
    _, _, measured, verdict = cells(tables.targets(rows))
    assert list(zip(measured, verdict, strict=True)) == [("105", "reached"), ("1/4", "missed")]


def test_limits_are_judged(monkeypatch):
    work = replace(WORKS["full-ties-llama"], target=Target(seconds=10, peak_mb=1000))
    monkeypatch.setitem(WORKS, work.name, work)
    _, _, measured, verdict = cells(tables.targets([row("ours", [9.0], 1001, work=work.name)]))
    assert list(zip(measured, verdict, strict=True)) == [("9 s", "reached"), ("1001 MB", "missed")]


def test_disagreement_is_seen():
    good, bad = row("knots", [1.0], 1, total=1e-3, worst=0.5), row("knots", [1.0], 1, total=0.1, worst=0.5)
    assert not good.failed
    assert bad.failed
    assert "DISAGREES" in cells(tables.figures([bad]))[-1][0]
    assert tables.Row("knots-ties-vit-b", "peft", error="RuntimeError: no").failed


def test_what_is_chosen():
    assert {work.group for work in merge_speed.chosen(None, None)} == {"reach"}
    assert [work.name for work in merge_speed.chosen(["sum-vit-b"], None)] == ["sum-vit-b"]
    assert {work.geometry for work in merge_speed.chosen(None, ["vit-l-14"])} == {"vit-l-14"}
    assert merge_speed.chosen(["smoke"], ["vit-l-14"]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "nothing"], "unknown work 'nothing'"),
        (["--geometry", "gpt"], "unknown geometry 'gpt'"),
        (["--runs", "0"], "--runs is 0"),
        (["--other-runs", "0"], "--other-runs is 0"),
        (["--json", "no/such/folder/figures.json"], "--json is no/such/folder/figures.json"),
        (["--work-dir", __file__], "which is a file"),
        (["--knots-repo", "no/such/folder"], "--knots-repo is no/such/folder"),
    ],
)
def test_bad_options_end_with_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        merge_speed.parse_arguments(options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_script_measures_in_processes_of_their_own(root, tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--only", "smoke-mean", "--runs", "1", "--threads", "1", "--json", figures]
    done = subprocess.run([*command, "--work-dir", root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not given: --mergekit-repo" in done.stdout
    content = json.loads(figures.read_text())
    ours, mergekit = content["rows"]
    assert ours["records"][0]["peak_mb"] > ours["records"][0]["baseline_mb"] > 100
    assert mergekit["error"]
    assert content["machine"]["threads"] == 1
    assert content["works"]["smoke-mean"] == json.loads(json.dumps(asdict(WORKS["smoke-mean"])))
    assert [path.name for path in root.iterdir()] == ["tiny-r4"]
