"""Words of a command line and settings of a file that are easily taken for something else."""

import datetime
import os
import signal

import pytest

from launch import cli, interrupts
from launch.commands.merge import parser
from launch.commands.steps import build_merger
from launch.commands.words import as_words, file_words, split_steps
from mergers import SheetbendError
from mergers.files import atomic_folder, cache_folder


@pytest.mark.parametrize("number", ["-1e-3", "-1E5", "-.5", "-2", "-1.", "-inf"])
def test_a_negative_number_is_no_option(number):
    options = parser().read(["--coefficients", number, "1", "--rank", "2"])
    assert options.coefficients == [number, "1"]
    assert options.rank == 2


def test_a_date_is_a_word_without_quotes():
    assert as_words({"output": datetime.date(2024, 1, 2)}) == ["--output=2024-01-02"]


@pytest.mark.parametrize("text", ["a: " + "[" * 20000, "a: &x [*x]", "method: &x {class_path: Ties, init_args: *x}"])
def test_files_without_end_are_refused(tmp_path, capsys, text):
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        file_words(str(path))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["mergers.methods.base.Method", "..x"])
def test_a_class_that_cannot_be_made_is_refused(name):
    with pytest.raises(SheetbendError, match="give one of"):
        build_merger(split_steps(["--method", name]), 1.0)


def test_what_is_half_written_is_removed_when_the_process_is_terminated(tmp_path):
    outer, before = lambda *_: None, signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, outer)
    try:
        with pytest.raises(SystemExit) as stop, interrupts.prompt(), atomic_folder(tmp_path / "merged") as folder:
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.code == 143
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(signal.SIGTERM) is outer
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_home_the_cache_needs_a_folder(monkeypatch, capsys):
    monkeypatch.delenv("SHEETBEND_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what is left of ~ where nobody knows the user
    with pytest.raises(SheetbendError, match="set SHEETBEND_CACHE"):
        cache_folder("alignments")
    with pytest.raises(SystemExit) as stop:
        cli.main(["cache"])
    assert stop.value.code == 2
    assert "set SHEETBEND_CACHE" in capsys.readouterr().err
