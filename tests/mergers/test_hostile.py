"""Files, names and values that nobody should make: a line that names them, never a traceback or a lost file."""

import errno
import os
from pathlib import Path

import pytest
import torch
from builders import lora_tensors, random_adapter, random_adapters, write_peft_folder
from safetensors.torch import save_file

from mergers import (
    Dare,
    DenseUpdate,
    Iso,
    KnOTS,
    LowRankUpdate,
    Merger,
    SheetbendError,
    Star,
    Ties,
    load_adapter,
    save_merged,
)
from mergers.analysis import analyse
from mergers.files import atomic_folder, atomic_write
from mergers.output.model_folder import copy_model
from mergers.output.truncation import truncate

A = "base_model.model.q.lora_A.weight"


def refusal(action, *words):
    with pytest.raises(SheetbendError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2, 10**12),
        torch.zeros(2, 3, device="meta"),
        torch.eye(2, 3).to_sparse(),
    ],
    ids=["claims 8 TB", "meta", "sparse"],
)
def test_odd_tensors_of_pickles_are_refused(tmp_path, tensor):
    folder = write_peft_folder(tmp_path / "pets", {})
    (folder / "adapter_model.safetensors").unlink()
    torch.save({**lora_tensors(), A: tensor}, folder / "adapter_model.bin")
    refusal(lambda: load_adapter(folder), "adapter_model.bin", A, "no plain tensor")
    published = tmp_path / "cars.pt"
    torch.save({A.replace(".weight", ".default.weight"): tensor}, published)
    refusal(lambda: load_adapter(published), "cars.pt", "no plain tensor")
    good = write_peft_folder(tmp_path / "food", lora_tensors())
    torch.save({"food": tensor}, good / "heads.pt")
    refusal(lambda: load_adapter(good), "heads.pt", "no plain tensor")


def test_a_head_in_eight_bits_is_refused(tmp_path):
    folder = write_peft_folder(tmp_path / "pets", lora_tensors())
    save_file({"score": torch.zeros(3, 3).to(torch.float8_e4m3fn)}, folder / "head.safetensors")
    refusal(lambda: load_adapter(folder), "its head score is torch.float8_e4m3fn", "float32")


def test_a_head_in_modules_to_save_is_checked_too(tmp_path):
    tensors = {**lora_tensors(), "base_model.model.score.weight": torch.tensor([[1.0, float("nan")]])}
    folder = write_peft_folder(tmp_path / "pets", tensors, modules_to_save=["score"])
    refusal(lambda: load_adapter(folder), "its head score.weight holds NaN")


@pytest.mark.parametrize(
    ("field", "value"), [("target_modules", 3), ("target_modules", [1]), ("base_model_name_or_path", "a\nb")]
)
def test_fields_that_would_be_written_back_are_checked(tmp_path, field, value):
    folder = write_peft_folder(tmp_path / "pets", lora_tensors(), **{field: value})
    refusal(lambda: load_adapter(folder), f"{field} is {value!r}")


@pytest.mark.parametrize("name", ["", "a\nb", "a\udcffb"])
def test_a_task_needs_a_name_that_can_be_written(name):
    adapters = [random_adapter(name, {"q": (4, 3)}, 2), random_adapter("other", {"q": (4, 3)}, 2)]
    refusal(lambda: Merger().merge(adapters), repr(name), "another name")


def test_names_do_not_break_the_table_of_the_card(tmp_path):
    adapters = [random_adapter("a|b", {"q": (4, 3)}, 2), random_adapter("other", {"q": (4, 3)}, 2)]
    save_merged(Merger(), adapters, tmp_path / "merged")
    assert "| a\\|b | 1 | 2 |" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize("transforms", [[], [Dare(0.5)], [Star()]])
def test_a_module_that_no_task_changed_stays_so_in_every_space(transforms):
    adapters = random_adapters(2, {"q": (6, 5), "idle": (4, 3)})
    for adapter in adapters:
        adapter._updates["idle"] = adapter["idle"].scaled(0.0)
    for space in ("full", "core", KnOTS(), KnOTS(concatenate="outputs")):
        merged = Merger(space, Ties(), transforms, finish=Iso()).merge(adapters).dense()
        assert torch.equal(merged["idle"], torch.zeros(4, 3))
        assert merged["q"].abs().sum() > 0


def test_values_that_overflow_are_named():
    adapters = [
        random_adapter(name, {"fine": (4, 3), "far.out": (4, 3)}, 2, seed) for seed, name in enumerate(("a", "b"))
    ]
    huge = adapters[0]["far.out"]
    adapters[0]._updates["far.out"] = LowRankUpdate(huge.A, huge.B, 1e39)
    refusal(lambda: Merger("knots", "ties").merge(adapters), "far.out overflows")
    refusal(lambda: Merger("full", Ties(), [Star()]).merge(adapters), "far.out overflows")
    refusal(lambda: analyse(adapters), "far.out overflows")


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4, 1e-5])
def test_a_small_error_of_truncation_is_reported_truly(noise):
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(200, 4, generator=generator) @ torch.randn(4, 150, generator=generator)
    delta += noise * torch.randn(200, 150, generator=generator)
    kept, squared_error, _ = truncate(DenseUpdate(delta), 4)
    error = (delta.double() - kept.B.double() @ kept.A.double()).norm().item()
    assert squared_error**0.5 == pytest.approx(error, rel=0.01)


def test_links_stay_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "merged").symlink_to(tmp_path / "disk")
    (tmp_path / "later").symlink_to(tmp_path / "not_yet")
    for link, target in (("merged", "disk"), ("later", "not_yet")):
        with atomic_folder(tmp_path / link) as folder:
            (folder / "a").write_text("one")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / target / "a").read_text() == "one"
    (tmp_path / "out.json").symlink_to(tmp_path / "disk" / "a")
    with atomic_write(tmp_path / "out.json") as temporary:
        temporary.write_text("two")
    assert (tmp_path / "out.json").is_symlink()
    assert (tmp_path / "disk" / "a").read_text() == "two"


def test_pipes_are_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic_write(pipe) as temporary:
            temporary.write_text("one")
        assert os.read(reader, 10) == b"one"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_link_to_itself_is_no_target(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    adapters = random_adapters(2)
    refusal(lambda: save_merged(Merger(), adapters, tmp_path / "loop"), "loop", "another folder")
    refusal(lambda: save_merged(Merger(), adapters, Path("a\0b")), "another folder")


def test_a_full_disk_is_not_said_of_the_base_model(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        copy_model(tmp_path, tmp_path / "copy")


def test_a_merge_is_for_those_whom_the_umask_lets_in(tmp_path):
    before = os.umask(0o077)
    try:
        save_merged(Merger(), random_adapters(2), tmp_path / "merged")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "merged").iterdir()} == {0o600}
    assert (tmp_path / "merged").stat().st_mode & 0o777 == 0o700
    save_merged(Merger(), random_adapters(2), tmp_path / "shared")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "shared").iterdir()} == {0o666 & ~before}
