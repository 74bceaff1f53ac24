"""The peak of memory that a run says before it begins, against what it took."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launch.test_cli import CONFIG

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def vit(tiny_clip, tmp_path_factory):
    """A CLIP of random weights with the width of ViT-B/32 and a third of its layers."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("vit")
    config = CLIPConfig.from_pretrained(tiny_clip)
    widths = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    config.vision_config.update({**widths, "num_hidden_layers": 4, "image_size": 224, "patch_size": 32})
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 224, "width": 224}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_clip).save_pretrained(folder)
    return str(folder)


def run(folder, verb, model, mergers, **settings):
    """Run a command in a process of its own; return what it said, and both numbers of bytes."""
    config = yaml.safe_load(CONFIG.format(model=model, root=folder))
    config["trainer"]["callbacks"][0]["init_args"]["mergers"] = {name: name for name in mergers}
    (folder.parent / "in.yaml").write_text(yaml.safe_dump(config))
    words = [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "launch", verb, "--config", str(folder.parent / "in.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    results = folder / "adaptations" / "adarank-ta" if verb == "adapt" else folder
    meta = json.loads((results / "results.json").read_text())["meta"]
    return done, meta["expected_bytes"]["resident"], meta["peak_bytes"]["resident"]


WORKS = {
    "tiny": ({}, ["mean"]),
    "steps": ({"data__batch_size": 48, "data__eval_batch_size": 16}, ["mean"]),
    "tests": ({"data__batch_size": 4, "data__eval_batch_size": 256}, ["mean"]),
    "merges": (
        {"data__batch_size": 4, "data__eval_batch_size": 8},
        ["ties", "dare", "knots-ties", "tsv", "della-ties"],
    ),
    "checkpointed": ({"data__batch_size": 48, "model__gradient_checkpointing": "true"}, ["mean"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("work", WORKS)
def test_the_peak_is_within_a_fifth_of_what_was_said(work, vit, tiny_clip, tmp_path):
    settings, mergers = WORKS[work]
    sizes = {"trainer__max_epochs": 2, "data__batches_per_epoch": 2, **settings}
    done, expected, peak = run(tmp_path / "run", "fit", tiny_clip if work == "tiny" else vit, mergers, **sizes)
    assert "expected at the peak: " in done.stdout and "may not be enough" not in done.stderr
    print(f"{work}: expected {expected / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB, ratio {expected / peak:.2f}")
    assert expected == pytest.approx(peak, rel=0.2)


@pytest.mark.slow
def test_the_peak_of_an_adaptation_is_within_a_fifth_of_what_was_said(vit, tmp_path):
    sizes = {"data__batches_per_epoch": 2, "data__batch_size": 4, "data__eval_batch_size": 8}
    run(tmp_path / "run", "fit", vit, ["mean"], trainer__max_epochs=1, **sizes)
    for batch_size in (4, 48):
        settings = {"adaptation__batch_size": batch_size, "adaptation__steps": 3, "overwrite": "true"}
        done, expected, peak = run(tmp_path / "run", "adapt", vit, ["mean"], **sizes, **settings)
        assert "expected at the peak: " in done.stdout and "may not be enough" not in done.stderr
        print(f"adapt: expected {expected / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB, ratio {expected / peak:.2f}")
        assert expected == pytest.approx(peak, rel=0.2)
