"""Adapters of the shapes of known models, with random values, as PEFT folders."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergers.files import atomic_folder
from mergers.seeding import derive_generator

Shape = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Which linear modules of a model carry LoRA.

    Attributes:
        name: Of the model; also written as the adapters' base model.
        layers: How many layers there are.
        projections: Path of a module within a layer, to its weight's shape (out, in).
        prefix: What stands before the layer's number in a module's name.
        dtype: Of the saved factors.
    """

    name: str
    layers: int
    projections: dict[str, Shape]
    prefix: str = "encoder.layers"
    dtype: torch.dtype = torch.float32

    def modules(self) -> dict[str, Shape]:
        """Return every module's name and (out, in)."""
        return {
            f"{self.prefix}.{layer}.{projection}": shape
            for layer in range(self.layers)
            for projection, shape in self.projections.items()
        }

    def parameters(self) -> int:
        """Return how many entries the updates of one task have when dense."""
        return sum(out_features * in_features for out_features, in_features in self.modules().values())


def _vision(name: str, layers: int, width: int) -> Geometry:
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return Geometry(name, layers, {f"self_attn.{projection}": (width, width) for projection in projections})


def _llama(name: str, layers: int, width: int = 4096, key_value: int = 1024) -> Geometry:
    shapes = {"q_proj": width, "k_proj": key_value, "v_proj": key_value, "o_proj": width}
    projections = {f"self_attn.{projection}": (rows, width) for projection, rows in shapes.items()}
    return Geometry(name, layers, projections, prefix="model.layers", dtype=torch.bfloat16)


GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        _vision("tiny", layers=2, width=192),
        _vision("vit-b-32", layers=12, width=768),
        _vision("vit-l-14", layers=24, width=1024),
        _llama("llama-3-8b", layers=32),
        _llama("llama-3-8b-layer", layers=1),
        replace(
            _llama("llama-3-8b-kv", layers=1),
            projections={"self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096)},
        ),
    )
}


def write_adapter(folder: Path, geometry: Geometry, rank: int) -> None:
    """Write the adapter of one task; the folder's name is the task's.

    Values are random and the same in every run: A has entries of variance 1 / in and B of 0.01 ** 2, so that
    an update is as large as one of a short fine-tuning. alpha equals r: the scale, which some published code
    leaves out, is 1.
    """
    tensors = {}
    for module, (out_features, in_features) in geometry.modules().items():
        generator = derive_generator(geometry.name, rank, folder.name, module)
        A = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        B = torch.randn(out_features, rank, generator=generator) * 0.01
        tensors[f"base_model.model.{module}.lora_A.weight"] = A.to(geometry.dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = B.to(geometry.dtype)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": geometry.name,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({projection.rpartition(".")[2] for projection in geometry.projections}),
        "bias": "none",
        "inference_mode": True,
    }
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
