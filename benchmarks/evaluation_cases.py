"""What `evaluation_speed` tests: models, random adapters, pictures on disk, and configurations."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn
from transformers import AutoConfig, CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from mergers import Adapter, LowRankUpdate, save_adapter
from mergers.seeding import derive_generator

ROOT = Path(__file__).resolve().parents[1]
TINY_CLIP = ROOT / "lightning_modules" / "base_models" / "tiny-clip"
QUICKSTART = ("digits", "mnist", "textures", "photographs", "scenes")
PICTURES = {"pets": ("cat", "dog", "horse", "bird"), "fruit": ("apple", "pear", "plum")}
TEMPLATE = "a photo of a {}."
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
RANK = 16
BATCH = 64
SIDES = 500, 375
TOWERS = {
    "vit-b-32": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"image_size": 224, "patch_size": 32},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 32, "patch_size": 16},
}


@dataclass(frozen=True)
class Case:
    """Something to test, on disk.

    Attributes:
        name: ``quickstart`` or ``pictures``.
        folder: holds ``adapters/<task>`` and, of pictures, ``model`` and ``pictures``.
        tasks: names of the tasks.
    """

    name: str
    folder: Path
    tasks: tuple[str, ...]

    @property
    def model(self) -> str:
        """The model, by name or folder."""
        return "tiny-clip" if self.name == "quickstart" else str(self.folder / "model")

    def configuration(self, merges: list[int], output: Path, cached: bool = False) -> dict[str, Any]:
        """Return what ``sheetbend test`` reads to test these of the merges.

        Args:
            merges: by number.
            output: the run folder.
            cached: keep decoded pictures on disk, as Sheetbend does by default.
        """
        if self.name == "quickstart":
            data = {"class_path": "datamodules.QuickstartDataModule", "init_args": {"tasks": list(self.tasks)}}
        else:
            settings = {"images": str(self.folder / "pictures"), "templates": [TEMPLATE], "eval_batch_size": BATCH}
            settings |= {} if cached else {"image_cache_gb": 0}
            data = {"class_path": "datamodules.ImageFolderDataModule", "init_args": settings}
        model = {"backbone": self.model, "adapters": str(self.folder / "adapters"), "lora": {"r": RANK}}
        callbacks = [
            {
                "class_path": "callbacks.MergeCallback",
                "init_args": {"mergers": {f"merge-{i}": merge(i) for i in merges}},
            },
            {"class_path": "callbacks.ResultsCallback", "init_args": {"plots": False, "tensorboard": False}},
        ]
        return {
            "model": {"class_path": "lightning_modules.ImageClassifier", "init_args": model},
            "data": data,
            "trainer": {
                "accelerator": "cpu",
                "default_root_dir": str(output),
                "logger": False,
                "enable_progress_bar": False,
                "callbacks": callbacks,
            },
        }

    def write_configuration(self, merges: list[int], output: Path, cached: bool = False) -> Path:
        """Write `configuration` beside ``output``; return the file."""
        path = output.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(self.configuration(merges, output, cached)), encoding="utf-8")
        return path


def merge(number: int) -> dict[str, Any]:
    """Return a merge as a configuration has it; no two numbers give the same.

    >>> merge(2)
    {'space': 'full', 'method': 'task_arithmetic', 'coefficients': 0.2}
    """
    if number % 2 == 0:
        return {"space": "full", "method": "task_arithmetic", "coefficients": round(0.1 + 0.05 * number, 2)}
    density = {"density": round(0.1 + 0.02 * number, 2)}
    return {"space": "knots", "method": {"class_path": "mergers.Ties", "init_args": density}}


def write_quickstart(folder: Path) -> Case:
    """Write random adapters of the quickstart's model."""
    case = Case("quickstart", folder, QUICKSTART)
    _write_adapters(case, TINY_CLIP, "tiny-clip")
    return case


def write_pictures(folder: Path, tower: str, count: int) -> Case:
    """Write a random model, random adapters and JPEG files of 500 x 375 pixels.

    Args:
        folder: new.
        tower: one of `TOWERS`.
        count: test pictures of each task.
    """
    case = Case("pictures", folder, tuple(sorted(PICTURES)))
    _write_model(folder / "model", TOWERS[tower])
    _write_adapters(case, folder / "model", "model")
    for task, classes in PICTURES.items():
        for split, size in (("train", len(classes)), ("val", len(classes)), ("test", count)):
            for number in range(size):
                path = folder / "pictures" / task / split / classes[number % len(classes)] / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(f"{task} {split} {number}").save(path, quality=90)
    return case


def picture(name: str) -> Image.Image:
    """Return a picture of soft shapes and some grain, so that its JPEG is as large as a photograph's."""
    generator = np.random.default_rng(list(name.encode()))
    shapes = Image.fromarray(generator.integers(0, 256, (8, 10, 3), np.uint8)).resize(SIDES, Image.Resampling.BICUBIC)
    grain = generator.integers(-12, 13, (SIDES[1], SIDES[0], 1))
    return Image.fromarray((np.asarray(shapes).astype(int) + grain).clip(0, 255).astype(np.uint8))


def _write_model(folder: Path, tower: dict[str, int]) -> None:
    """Write a random CLIP: this vision tower, and text tower and tokenizer of the shape of tiny-clip's."""
    tiny = AutoConfig.from_pretrained(TINY_CLIP)
    vision = {**tower, "projection_dim": tiny.projection_dim}
    config = CLIPConfig(
        text_config=tiny.text_config.to_dict(), vision_config=vision, projection_dim=tiny.projection_dim
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:  # CLIP's own initial values are so small that all pictures look alike
            nn.init.normal_(parameter, std=0.3 if "embedding" in name else parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_CLIP / name, folder / name)
    side = tower["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _write_adapters(case: Case, model: Path, base: str) -> None:
    tower = CLIPVisionModelWithProjection.from_pretrained(model)
    layers = {name: layer for name, layer in tower.named_modules() if isinstance(layer, nn.Linear)}
    layers = {name: layer for name, layer in layers.items() if name.endswith(TARGETS)}
    for task in case.tasks:
        updates = {}
        for name, layer in layers.items():
            generator = derive_generator(task, name)
            rank = min(RANK, layer.in_features)
            A = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
            updates[name] = LowRankUpdate(A, torch.randn(layer.out_features, rank, generator=generator) * 0.05)
        save_adapter(Adapter(updates, task, base_model=base), case.folder / "adapters" / task)
