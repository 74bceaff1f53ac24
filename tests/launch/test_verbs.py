"""Our Trainer: checkpoints that are whole, and epochs that end once."""

import errno
import os

import pytest
import torch

from launch.cli import main
from launch.configured_cli import _naming_what_is_full
from launch.verbs import SheetbendTrainer, WholeCheckpoints
from lightning_modules import LoRATasks
from tests.launch.merging import tree
from tests.launch.test_cli import CONFIG


def test_a_checkpoint_is_written_beside_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    trainer = SheetbendTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    checkpoints = trainer.strategy.checkpoint_io
    assert type(checkpoints) is WholeCheckpoints
    checkpoints.save_checkpoint({"a": torch.ones(2)}, tmp_path / "new" / "a.ckpt")
    before = tree(tmp_path)
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoints.save_checkpoint({"a": lambda: 0}, tmp_path / "new" / "a.ckpt")
    assert tree(tmp_path) == before and torch.load(tmp_path / "new" / "a.ckpt")["a"].tolist() == [1, 1]


def test_a_run_of_so_many_steps_goes_on_after_the_end_of_an_epoch(tiny_clip, tmp_path, monkeypatch, capsys):
    whole = LoRATasks.training_step

    def fit(name, *words):
        path = tmp_path / f"{name}.yaml"
        path.write_text(CONFIG.format(model=tiny_clip, root=tmp_path / name))
        steps = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "15", "--test_after_fit", "false"]
        main(["fit", "--config", str(path), *steps, *words])
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)

    def interrupted(module, batch, batch_idx):
        if module.global_step == 7:
            raise KeyboardInterrupt
        return whole(module, batch, batch_idx)

    expected = fit("whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(LoRATasks, "training_step", interrupted)
        fit("half")
    found = fit("half")
    assert expected["global_step"] == 15 and expected["epoch"] == found["epoch"] == 2
    assert found["loops"] == expected["loops"] and found["tasks"] == expected["tasks"]
    assert all(torch.equal(found["state_dict"][name], value) for name, value in expected["state_dict"].items())
    capsys.readouterr()
    fit("half")
    assert "trained already" in capsys.readouterr().out


@pytest.mark.parametrize(("free", "named"), [(0, True), (10**9, False)])
def test_a_nameless_error_of_a_full_disk_gets_the_name_of_its_folder(tmp_path, monkeypatch, free, named):
    """Of a folder on another disk, that was not written to, it says nothing."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    with pytest.raises(OSError) as error, _naming_what_is_full(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (error.value.filename == str(tmp_path / "run")) is named
