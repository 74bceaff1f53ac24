"""`sheetbend cache` as it is typed."""

import os
import time

import pytest
import torch
from PIL import Image

from datamodules.image_cache import ImageCache
from datamodules.images import ImageTransform
from datamodules.sources.image_folder import read_image_folder
from datamodules.sources.tables import read_table
from launch.cli import main
from lightning_modules.vector_cache import cached_vectors
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


def row(out, kind):
    """The words of one line of the table."""
    return next(line.split() for line in out.splitlines() if line.startswith(kind))


def test_what_there_is(filled, capsys):
    out = run(capsys)
    assert str(filled.folder.parent) in out.replace("\n", "")
    assert row(out, "alignments")[1] == "3" and "just now" in out and "40 days ago" in out
    assert all(row(out, kind)[1:3] == ["0", "0"] for kind in ("images", "heads", "tables", "prepared"))
    assert run(capsys, "show") == out
    alone = run(capsys, "show", "alignments")
    assert row(alone, "alignments") == row(out, "alignments") and "images" not in alone


def test_clearing_some_and_all(filled, capsys):
    words = ("clear", "alignments")
    assert "removed 1 entries" in (out := run(capsys, *words, "--older-than", "30")) and "2 kept" in out
    assert "removed 1 entries" in run(capsys, *words, "--older_than=0.01")
    assert "removed 1 entries" in (out := run(capsys, *words)) and "kept" not in out
    assert row(run(capsys), "alignments")[1] == "0"


def test_every_kind_is_shown_and_cleared(filled, tmp_path, capsys):
    """What the rest of the product keeps, written by it, not by hand."""
    picture = tmp_path / "own" / "red" / "0.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(picture)
    source = read_image_folder(tmp_path / "own")["all"]
    ImageCache(10**6, quiet=True).open(source, ImageTransform(8), "task own").prepare()
    cached_vectors("key", lambda: torch.eye(2))
    (tmp_path / "examples.csv").write_text("a,b\n1,2\n")
    read_table(tmp_path / "examples.csv", "train")
    out = run(capsys)
    assert [row(out, kind)[1] for kind in ("alignments", "images", "heads", "tables")] == ["3", "1", "1", "1"]
    assert all(row(out, kind)[2] != "0" for kind in ("alignments", "images", "heads", "tables"))
    out = run(capsys, "clear", "images", "tables")
    assert out.count("removed 1 entries") == 2
    out = run(capsys)
    assert [row(out, kind)[1] for kind in ("alignments", "images", "heads", "tables")] == ["3", "0", "1", "0"]
    run(capsys, "clear")
    out = run(capsys)
    assert all(row(out, kind)[1] == "0" for kind in ("alignments", "images", "heads", "tables"))
    assert len(read_table(tmp_path / "examples.csv", "train")) == 1


def test_nothing_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "none"))
    assert row(run(capsys), "alignments")[1] == "0"
    assert "removed 0 entries" in run(capsys, "clear")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["claer"], "'claer' is none of show, clear (did you mean 'clear'?)"),
        (["clear", "picturs"], "'picturs' is none of"),
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
