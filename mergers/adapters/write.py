"""Writing low-rank updates as a PEFT folder."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergers.adapters.kinds import Kind, fits_lora, kind_of, lying_shape
from mergers.adapters.names import PEFT_PREFIX
from mergers.adapters.patterns import has_patterns
from mergers.adapters.peft import CONFIG_FILE, OUT_PROJ, WEIGHTS_FILE
from mergers.errors import SheetbendError
from mergers.files import atomic_folder, write_safetensors
from mergers.functional.linalg import all_finite
from mergers.updates import Adapter, LowRankUpdate

_OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, "README.md"}  # PEFT writes a model card
#: What the factors of a LoRA adapter may be saved as, by name.
SAVED_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
# For these PEFT expects the classifier among the weights; heads of merged tasks are kept apart.
_TASKS_WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def save_adapter(adapter: Adapter, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write low-rank updates as a PEFT folder that ``PeftModel.from_pretrained`` loads.

    The scale is folded into B and alpha equals r, module by module, so that the loaded scale is 1.

    Args:
        adapter: Only `LowRankUpdate`; a dense one is refused before anything is written.
        path: The folder. An adapter that stands there is replaced once the new one is complete.
        dtype: Of the saved factors; by default the adapter's own.

    Raises:
        SheetbendError: An update is dense, or ``path`` holds something else than an adapter.
    """
    dense = [module for module, update in adapter.items() if not isinstance(update, LowRankUpdate)]
    if dense:
        raise SheetbendError(
            f"adapter {adapter.label}: {len(dense)} updates such as {dense[0]} are dense and no LoRA "
            "adapter holds them exactly; merge in another space (knots), or apply the result "
            "to the base model and save that"
        )
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise SheetbendError(f"{path} is a file; give a new folder for the adapter")
    others = sorted({entry.name for entry in path.iterdir()} - _OWN_FILES) if path.is_dir() else []
    if others:
        raise SheetbendError(f"{path} also holds {others[0]}, which would be lost; give a new or empty folder")
    if dtype is not None and not dtype.is_floating_point:
        raise SheetbendError(f"dtype is {dtype}; give a floating one, such as torch.float32")
    dtype = dtype or SAVED_DTYPES.get(adapter.metadata.get("dtype"), torch.float32)
    tensors = {}
    ranks = {}
    for module in adapter:
        factors = peft_tensors(adapter, module, dtype)
        tensors.update(factors)
        ranks[module] = next(iter(factors.values())).shape[0]
    with atomic_folder(path) as folder:
        write_safetensors(tensors, folder / WEIGHTS_FILE)
        text = json.dumps(peft_config(adapter, ranks), indent=2)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def peft_tensors(adapter: Adapter, module: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what PEFT saves for one module: its key of A, then of B, to tensors of their own in ``dtype``.

    Embeddings have keys of their own, convolutions get their kernel back, and fused attention a zero for its out_proj.

    Raises:
        SheetbendError: The factors do not fit ``dtype``, or the module is none that PEFT adapts.
    """
    update, kind = adapter[module], kind_of(adapter.metadata, module)
    if not fits_lora(kind):
        raise SheetbendError(
            f"adapter {adapter.label}: {module} is the difference of two checkpoints and may be no linear layer; "
            "say so where it is loaded (modules=[...], linear=True), or apply the result to the base model"
        )
    B, A = update.factors()
    if A.shape[0] == 0:  # PEFT knows no rank 0: one direction of zeros instead
        B, A = B.new_zeros(B.shape[0], 1), A.new_zeros(1, A.shape[1])
    if not (all_finite(A.to(dtype)) and all_finite(B.to(dtype))):
        raise SheetbendError(f"module {module}: its factors do not fit {dtype}; give dtype=torch.float32")
    if isinstance(kind, dict):
        A = A.reshape(lying_shape(tuple(A.shape), kind))
        B = B.reshape(*B.shape, *(1 for _ in kind["conv"]))
    names = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    factors = {module: (A, B)}
    if kind == "in_proj":
        owner, width = peft_module(module, kind), A.shape[1]
        factors = {owner: (A, B), owner + OUT_PROJ: (A.new_zeros(A.shape), B.new_zeros(width, B.shape[1]))}
    return {
        f"{PEFT_PREFIX}{owner}.{name}": factor.to("cpu", dtype)
        for owner, pair in factors.items()
        for name, factor in zip(names, pair, strict=True)
    }


def peft_module(module: str, kind: Kind) -> str:
    """Return the name by which PEFT selects ``module``: for stacked projections that of their attention.

    >>> peft_module("layers.0.attn.in_proj_weight", "in_proj")
    'layers.0.attn'
    """
    return module.removesuffix(".in_proj_weight") if kind == "in_proj" else module


def peft_config(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of a LoraConfig with alpha = r for every module."""
    ranks = {peft_module(module, kind_of(adapter.metadata, module)): rank for module, rank in ranks.items()}
    # The commonest rank becomes r (the smaller of two equally common), the others are listed by exact name.
    counts = Counter(ranks.values())
    rank = min(counts, key=lambda value: (-counts[value], value))
    pattern = {f"^{re.escape(module)}": value for module, value in ranks.items() if value != rank}
    task_type = adapter.metadata.get("task_type")
    selection = adapter.metadata.get("selection") or {}
    if has_patterns(selection) or not all(_selects(selection.get("target_modules"), module) for module in ranks):
        selection = {"target_modules": list(ranks)}
    return {
        "peft_type": "LORA",
        "task_type": None if task_type in _TASKS_WITH_HEADS else task_type,
        "base_model_name_or_path": adapter.base_model,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(adapter.metadata.get("fan_in_fan_out", False)),
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
        **selection,
    }


def _selects(target_modules: Any, module: str) -> bool:
    """Return whether PEFT adapts ``module`` for this list of names; a pattern that somebody wrote is not tried."""
    if not isinstance(target_modules, list | tuple):
        return False
    return any(module == target or module.endswith(f".{target}") for target in target_modules)
