"""`sheetbend cache` as it is typed."""

import os
import time

import pytest
import torch

from launch.cli import main
from mergers import KnOTS, LowRankUpdate
from mergers.cache import AlignmentCache


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A cache of three entries, one used now, one an hour ago, one forty days ago."""
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))
    cache = AlignmentCache()
    for age in (0, 1.2 / 24, 40):
        known = {entry.path for entry in cache.entries()}
        cache.encoder(KnOTS())([LowRankUpdate(torch.ones(1, 3 + int(age)), torch.ones(4, 1), 1 + age)])
        (new,) = {entry.path for entry in cache.entries()} - known
        os.utime(new, (time.time() - 86400 * age,) * 2)
    return cache


def run(capsys, *words):
    main(["cache", *words])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_what_there_is(filled, capsys):
    out = run(capsys)
    assert str(filled.folder) in out.replace("\n", "") and "entries    3" in out
    assert "of at most 20 GB" in out and "just now (newest), 40 days ago (oldest)" in out
    assert run(capsys, "show") == out


def test_clearing_some_and_all(filled, capsys):
    assert "removed 1 entries" in (out := run(capsys, "clear", "--older-than", "30")) and "2 kept" in out
    assert "removed 1 entries" in run(capsys, "clear", "--older_than=0.01")
    assert "removed 1 entries" in (out := run(capsys, "clear")) and "kept" not in out
    assert "entries  0" in run(capsys)


def test_nothing_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "none"))
    assert "entries  0" in run(capsys)
    assert "removed 0 entries" in run(capsys, "clear")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["claer"], "'claer' is none of show, clear (did you mean 'clear'?)"),
        (["clear", "--older-than", "long"], "--older-than: give a number of days from 0 on, not 'long'"),
        (["clear", "--older-than", "-1"], "give a number of days from 0 on, not '-1'"),
        (["clear", "--older-then", "1"], "(did you mean --older-than?)"),
        (["--older-than", "1"], "--older-than belongs to clear"),
    ],
)
def test_what_the_user_can_fix_is_one_line(filled, capsys, words, expected):
    with pytest.raises(SystemExit) as stop:
        main(["cache", *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and expected in error
    assert len(filled.entries()) == 3
