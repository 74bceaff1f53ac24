"""A hub that accepts connections and never answers, as behind some firewalls: each command says so, in seconds."""

import os
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants

from mergers.adapters import reachable
from tests.hub_stand_in import silent
from tests.launch.merging import ROOT, refused

CONFIG = """
model:
  class_path: lightning_modules.ImageClassifier
  init_args: {{backbone: {backbone}, lora: {{r: 2}}}}
data:
  class_path: tests.stand_ins.StandIns
  init_args: {{tasks: [hue, shade]}}
trainer: {{accelerator: cpu, default_root_dir: {root}}}
"""
# Far above the wait for an answer, far below the minutes that the hub's own package would wait.
MOST_SECONDS = 10


@pytest.fixture
def silent_hub(tmp_path, monkeypatch):
    """The hub's package is switched on, asks one that is silent, and has nothing in its cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reachable, "SECONDS", 1.0)
    reachable.hub_answers.cache_clear()
    with silent() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield address
    reachable.hub_answers.cache_clear()


def refused_soon(capsys, *words):
    """Run a command that must fail as the user's fault, without a long wait; return its one line."""
    started = time.monotonic()
    line = refused(capsys, *words)
    assert time.monotonic() - started < MOST_SECONDS
    return line


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_model_that_is_not_here(command, silent_hub, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG.format(backbone="owner/model", root=tmp_path / "run"))
    line = refused_soon(capsys, command, "--config", str(tmp_path / "run.yaml"))
    assert "backbone 'owner/model' could not be loaded (the hub cannot be reached)" in line
    assert "hf download owner/model" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_adapters_that_are_not_here(command, silent_hub, tiny_clip, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG.format(backbone=tiny_clip, root=tmp_path / "run"))
    given = "{hue: owner/hue, shade: owner/shade}"
    line = refused_soon(capsys, command, "--config", str(tmp_path / "run.yaml"), "--model.adapters", given)
    assert "owner/hue is not on this machine, or not whole, and the hub cannot be reached" in line


@pytest.mark.parametrize("command", ["merge", "inspect"])
def test_adapters_of_commands_that_need_no_model(command, silent_hub, tmp_path, capsys):
    words = ["--method", "mean", "--output", str(tmp_path / "merged")] if command == "merge" else []
    given = ["--adapters", "owner/hue", "owner/shade"] if command == "merge" else ["owner/hue", "owner/shade"]
    line = refused_soon(capsys, command, *given, *words)
    assert "owner/hue is not on this machine, or not whole, and the hub cannot be reached" in line


def test_the_environment_alone_names_the_hub(tmp_path):
    """As a user does it: the whole program, with the wait that it has."""
    with silent() as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        words = ["merge", "--adapters", "owner/hue", "owner/shade", "--method", "mean", "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words],
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "the hub cannot be reached" in done.stderr
