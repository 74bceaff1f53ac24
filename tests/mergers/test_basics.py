"""Errors, seeds and files."""

from pathlib import Path

import pytest
import torch

from mergers.errors import SheetbendError, did_you_mean
from mergers.files import atomic_folder, atomic_write
from mergers.seeding import derive_generator, derive_seed


def test_errors_are_value_errors():
    assert issubclass(SheetbendError, ValueError)


def test_did_you_mean():
    assert did_you_mean("minst", ["mnist", "svhn"]) == " (did you mean 'mnist'?)"
    assert did_you_mean("cars", ["mnist", "svhn"]) == ""
    assert did_you_mean("cars", []) == ""


def test_seeds_depend_on_every_part_and_on_where_it_ends():
    seeds = {derive_seed(*parts) for parts in [(0, "a"), (1, "a"), (0, "b"), (0, "a", ""), ("0a",), ("a", 0)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Fixed for good: masks and splits of published runs depend on it.
    assert derive_seed(0, "mnist") == 3113423325833784678
    assert torch.equal(
        torch.rand(3, generator=derive_generator(0, "a")), torch.rand(3, generator=derive_generator(0, "a"))
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write(tmp_path):
    target = tmp_path / "new" / "results.json"
    with atomic_write(target) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".json"
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert target.read_text() == "one"
    assert names(target.parent) == ["results.json"]


def test_atomic_folder(tmp_path):
    target = tmp_path / "new" / "merged"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("one")
        assert not target.exists()
    assert names(target) == ["a"]
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "b").write_text("two")
        raise RuntimeError
    assert names(target) == ["a"]
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("two")
    assert names(target) == ["b"], "the old folder is replaced whole"
    assert names(target.parent) == ["merged"]


def test_a_folder_comes_back_when_its_successor_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("kept")
    rename = Path.rename
    monkeypatch.setattr("mergers.files._exchange", lambda one, other: False)  # as on some disks

    def failing(self, other):
        if (self / "new").exists():
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as temporary:
        (temporary / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (target / "old").read_text() == "kept"


def test_two_writers_do_not_share_a_temporary_name(tmp_path):
    with atomic_write(tmp_path / "a.txt") as first, atomic_write(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
