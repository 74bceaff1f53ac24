"""`sheetbend merge` where it must refuse, or is stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mergers import Merger
from tests.launch.merging import ROOT, refused, run, same, tree, write_adapter

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


def test_a_number_of_hundreds_of_digits(adapters, merged, capsys):
    words = ("--method", "ties", "--method.density", "1" + "0" * 400, "--output", merged)
    assert "no number that a computer holds" in refused(capsys, "merge", "--adapters", *adapters, *words)


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
    monkeypatch.setattr("mergers.memory._status", lambda name, *_: 1000 if name == "MemAvailable" else 0)
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


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_nobody_needs_to_be_told(tmp_path, closed):
    """A stream that is closed is one that nobody reads."""
    for seed, name in enumerate(("a", "b")):
        write_adapter(tmp_path / name, seed)
    command = f"{sys.executable} -m launch merge --adapters a b --output merged {closed}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()
