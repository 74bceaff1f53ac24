"""Random adapters, and what compares them."""

import json

import torch
from safetensors.torch import save_file

from mergers import Adapter, LowRankUpdate


def random_adapter(name, shapes, ranks, seed=0, dtype=torch.float32, scale=1.0, base_model="base", **metadata):
    """shapes: module -> (out, in); ranks: one for all, or module -> rank."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for module, (rows, columns) in shapes.items():
        rank = ranks if isinstance(ranks, int) else ranks[module]
        A = torch.randn(rank, columns, generator=generator).to(dtype)
        B = torch.randn(rows, rank, generator=generator).to(dtype)
        updates[module] = LowRankUpdate(A=A, B=B, scale=scale)
    return Adapter(updates, name=name, base_model=base_model, metadata=metadata)


SHAPES = {"layers.0.q": (6, 5), "layers.0.v": (4, 7), "layers.1.q": (6, 5)}


def random_adapters(count=3, shapes=None, ranks=2, seed=0, **options):
    return [
        random_adapter(f"task_{index}", shapes or SHAPES, ranks, seed=100 * seed + index, **options)
        for index in range(count)
    ]


def write_peft_folder(path, tensors, **config):
    """A PEFT folder of r 2 and alpha 4, with any config field replaced."""
    path.mkdir(parents=True, exist_ok=True)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", **config}
    (path / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def lora_tensors(module="q", rows=4, columns=3, rank=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": torch.randn(rank, columns, generator=generator).to(dtype),
        f"{prefix}.lora_B.weight": torch.randn(rows, rank, generator=generator).to(dtype),
    }


def assert_same(left, right, tolerance=2e-5):
    """Two maps from module to tensor."""
    assert list(left) == list(right)
    for module in left:
        torch.testing.assert_close(left[module], right[module], rtol=tolerance, atol=tolerance)
