"""What the README shows works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mergers import Adapter, LowRankUpdate, load_adapter, save_adapter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def block(mark):
    (found,) = [text for text in BLOCKS if mark in text]
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_merging_two_adapters(workplace):
    generator = torch.Generator().manual_seed(0)
    for task, rank in (("digits", 3), ("mnist", 5)):
        update = LowRankUpdate(torch.randn(rank, 12, generator=generator), torch.randn(10, rank, generator=generator))
        save_adapter(Adapter({"layer.q_proj": update}, name=task), workplace / "runs/quickstart/adapters" / task)
    scope = {}
    exec(block("from mergers import KnOTS"), scope)
    saved = load_adapter(workplace / "runs/merged")["layer.q_proj"]
    assert saved.rank <= 8
    torch.testing.assert_close(saved.dense(), scope["merged"].dense()["layer.q_proj"])


def test_peft_loads_an_adapter_of_the_quickstart(workplace):
    (workplace / "lightning_modules").symlink_to(ROOT / "lightning_modules")
    generator = torch.Generator().manual_seed(0)
    module = "vision_model.encoder.layers.0.self_attn.q_proj"
    update = LowRankUpdate(torch.randn(3, 128, generator=generator), torch.randn(128, 3, generator=generator))
    save_adapter(Adapter({module: update}, name="digits"), workplace / "runs/quickstart/adapters/digits")
    scope = {}
    exec(block("from peft import PeftModel"), scope)
    layer = scope["model"].get_submodule(f"base_model.model.{module}")
    torch.testing.assert_close(layer.get_delta_weight("default"), update.dense())


def test_a_datamodule_of_ones_own(workplace):
    (workplace / "my_data.py").write_text(block("# my_data.py"))
    (workplace / "my_data").mkdir()
    generator = np.random.default_rng(0)
    for task, classes in (("pets", 2), ("fruit", 3)):
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = generator.integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(20) % classes
        np.savez(workplace / "my_data" / f"{task}.npz", **arrays)
    command = (
        f"{sys.executable} -m launch fit --config {ROOT}/configs/quickstart.yaml --data my_data.MyImages "
        "--data.tasks [pets,fruit] --trainer.default_root_dir runs/pets_fruit --trainer.max_epochs 1"
    )
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(workplace),
        "OMP_NUM_THREADS": "1",  # two threads on shared cores can take four times as long
    }
    done = subprocess.run(command.split(), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert load_adapter(workplace / "runs/pets_fruit/adapters/fruit").name
    assert "knots-ties" in done.stdout


def test_every_file_it_points_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
