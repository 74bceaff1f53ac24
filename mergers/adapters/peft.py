"""PEFT's LoRA adapters: from a config and a state dict to updates."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergers.adapters.common import common_dtype
from mergers.adapters.config import (
    is_saved,
    plain,
    refuse_foreign_config,
    saved_modules,
    scaling,
    selection_of,
)
from mergers.adapters.files import is_file, own_copy, read_json, read_pickle, read_safetensors
from mergers.adapters.heads import check_head, read_heads
from mergers.adapters.kinds import Kind
from mergers.adapters.names import PEFT_PREFIX, require_module_name
from mergers.errors import SheetbendError
from mergers.functional.linalg import all_finite
from mergers.updates import Adapter, LowRankUpdate, Update

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS_FILE = "adapter_model.bin"

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight", re.DOTALL)
_EMBEDDING_KEY = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])", re.DOTALL)
# PEFT adapts a MultiheadAttention as a whole: in_proj_weight under the module's own name, and this below it.
OUT_PROJ = ".base_layer.out_proj"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What else PEFT saves, by what its key contains, and the way out.
_FOREIGN_KEYS = (
    ("lora_magnitude_vector", "belongs to DoRA; train the adapter without DoRA"),
    ("lora_B.bias", "is a bias of lora_B; train the adapter with lora_bias=False"),
    ("token_adapter.", "holds trained rows of an embedding; train the adapter without trainable_token_indices"),
    (".base_layer.lora_", "is LoRA on bare parameters; train the adapter with target_modules alone"),
    (
        ".base_layer.weight",
        "is a whole base weight, as PEFT saves for embeddings; save the adapter again with "
        "save_pretrained(..., save_embedding_layers=False)",
    ),
    (".bias", "is a bias; train the adapter with bias 'none', or name its module in modules_to_save"),
    (
        ".weight",
        "is a whole weight that the config does not name in modules_to_save; save the adapter again with "
        "save_pretrained(..., save_embedding_layers=False), or name its module there to keep it as this task's own",
    ),
)


def load_peft_folder(path: Path, name: str, label: str) -> Adapter:
    """Read a PEFT LoRA folder.

    Args:
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors`` or ``adapter_model.bin``;
            ``head.safetensors`` and ``heads.pt`` are read too where present.
        name: Name of the task.
        label: How messages call the adapter.

    Raises:
        SheetbendError: The folder is no adapter, or holds what cannot be merged.
    """
    if not is_file(path / CONFIG_FILE):
        problem = f"has no {CONFIG_FILE}" if path.is_dir() else "does not exist"
        raise SheetbendError(f"{label} is no PEFT adapter folder: it {problem}; give a folder that PEFT saved")
    config = read_json(path / CONFIG_FILE)
    if is_file(path / WEIGHTS_FILE):
        tensors = read_safetensors(path / WEIGHTS_FILE)
    elif is_file(path / PICKLED_WEIGHTS_FILE):
        pickled = path / PICKLED_WEIGHTS_FILE
        tensors = {
            key: own_copy(value, str(key), pickled) if isinstance(value, Tensor) else value
            for key, value in read_pickle(pickled).items()
        }
    else:
        raise SheetbendError(
            f"{label} is no PEFT adapter folder: it has no {WEIGHTS_FILE}; give a folder that PEFT saved"
        )
    adapter = adapter_from_state_dict(tensors, config, name=name, label=label)
    adapter.metadata["path"] = label
    for head, tensor in read_heads(path, name, label).items():
        if head in adapter.heads and not torch.equal(adapter.heads[head], tensor):
            raise SheetbendError(
                f"adapter {label}: its weights and the head file beside them hold different {head}; remove one"
            )
        adapter.heads[head] = tensor
    return adapter


def adapter_from_state_dict(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str, label: str | None = None
) -> Adapter:
    """Build an adapter from what PEFT's ``get_peft_model_state_dict`` and ``LoraConfig.to_dict`` return.

    LoRA on linear layers (transformers' ``Conv1D`` too), embeddings and convolutions becomes a `LowRankUpdate` a
    module, in the dtype of its tensors; see `mergers.adapters.kinds` for how each lies in its weight. Of a
    ``MultiheadAttention`` the stacked projections are read; its ``out_proj`` must be zero, since PEFT (to 0.21, pull
    request 3774) adds that update twice when it runs. What ``modules_to_save`` names is kept in ``heads``.

    Args:
        tensors: ``[base_model.model.]MODULE.lora_A.weight`` (r, in) and ``...lora_B.weight`` (out, r), those of
            convolutions with their kernel; ``...lora_embedding_A`` (r, num) and ``..._B`` (dim, r).
        config: The fields of PEFT's LoraConfig.
        name: Name of the task.
        label: How messages call the adapter; ``name`` if not given.

    Raises:
        SheetbendError: It holds what cannot be merged; the message names it.
    """
    label = label or name
    refuse_foreign_config(config, label)
    pairs, heads = _sorted_out(tensors, saved_modules(config, label), label)
    # PEFT gives out_proj the rank and scale of the attention that it is part of.
    rank_and_scale = scaling(config, [module for module, _ in pairs], label)
    updates, kinds = updates_of(pairs, lambda module, _: rank_and_scale(module.removesuffix(OUT_PROJ)), label)
    updates, kinds = _with_fused_attention(updates, kinds, label)
    metadata = {
        "dtype": common_dtype(dtypes_of(pairs)),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out", False)),
        "task_type": plain(config.get("task_type")),
        "selection": selection_of(config, label),
        "kinds": kinds,
    }
    base_model = config.get("base_model_name_or_path")
    if base_model is not None and not (isinstance(base_model, str) and base_model.isprintable()):
        raise SheetbendError(f"adapter {label}: base_model_name_or_path is {base_model!r}; it must be a name")
    return Adapter(updates, name=name, base_model=base_model or None, metadata=metadata, heads=heads)


Pairs = dict[tuple[str, bool], dict[str, Tensor]]  # (module, whether an embedding) to its factors A and B


def _sorted_out(tensors: Mapping[str, Tensor], saved: tuple[str, ...], label: str) -> tuple[Pairs, dict[str, Tensor]]:
    """Return the factors of each module and the saved modules' parameters; raise if anything is left."""
    pairs: Pairs = {}
    heads: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise SheetbendError(f"adapter {label}: its weights hold {key!r}, which is no tensor; save it again")
        path = key.removeprefix(PEFT_PREFIX)
        match = _KEY.fullmatch(path) or _EMBEDDING_KEY.fullmatch(path)
        if match is not None and ".base_layer" not in match["module"].removesuffix(OUT_PROJ):
            require_module_name(match["module"], label)
            pair = pairs.setdefault((match["module"], match.re is _EMBEDDING_KEY), {})
            if match["factor"] in pair:
                raise SheetbendError(f"adapter {label}: {path} stands twice in its weights; save it again")
            pair[match["factor"]] = tensor
        elif is_saved(path, saved):
            require_module_name(path, label)
            check_head(path, tensor, label)
            heads[path] = tensor.detach()
        else:
            reason = next((reason for part, reason in _FOREIGN_KEYS if part in key), "is no LoRA; train without it")
            raise SheetbendError(f"adapter {label}: {key[:200]!r} {tuple(tensor.shape)} {reason}")
    if not pairs:
        raise SheetbendError(f"adapter {label}: its weights file holds no LoRA tensor; save the adapter again")
    return pairs, heads


def dtypes_of(pairs: Pairs) -> set[str]:
    """Return the names of the dtypes that the factors have."""
    return {str(tensor.dtype).removeprefix("torch.") for pair in pairs.values() for tensor in pair.values()}


def updates_of(
    pairs: Pairs, scaling: Callable[[str, int], tuple[int, float]], label: str
) -> tuple[dict[str, Update], dict[str, Kind]]:
    """Return the update and the kind of each module.

    Args:
        pairs: The factors of each module.
        scaling: From module name and the rank of its tensors to the rank they should have and the scale.
        label: How messages call the adapter.
    """
    updates: dict[str, Update] = {}
    kinds: dict[str, Kind] = {}
    for (module, embedding), pair in pairs.items():
        if module in updates:
            raise SheetbendError(f"adapter {label}: {module} is an embedding and a linear layer; save it again")
        updates[module], kinds[module] = _update_of(pair, module, embedding, scaling, label)
    return updates, kinds


def _with_fused_attention(
    updates: Mapping[str, Update], kinds: Mapping[str, Kind], label: str
) -> tuple[dict[str, Update], dict[str, Kind]]:
    """Return updates and kinds with the stacked projections of fused attention under the name of their parameter."""
    fused = {module.removesuffix(OUT_PROJ) for module in updates if module.endswith(OUT_PROJ)}
    named: dict[str, Update] = {}
    named_kinds: dict[str, Kind] = {}
    for module, update in updates.items():
        if module.endswith(OUT_PROJ):
            owner = module.removesuffix(OUT_PROJ)
            if owner not in updates:
                raise SheetbendError(
                    f"adapter {label}: MultiheadAttention {owner} has LoRA on out_proj alone; save it again"
                )
            if update.A.any() and update.B.any():
                raise SheetbendError(
                    f"adapter {label}: {owner} is a MultiheadAttention with LoRA on its out_proj, which PEFT adds "
                    "twice when it runs, so that what was trained is not what the file says; leave out_proj at zero"
                )
        else:
            name, kind = (f"{module}.in_proj_weight", "in_proj") if module in fused else (module, kinds[module])
            named[name], named_kinds[name] = update, kind
    return named, named_kinds


def _update_of(
    pair: Mapping[str, Tensor],
    module: str,
    embedding: bool,
    scaling: Callable[[str, int], tuple[int, float]],
    label: str,
) -> tuple[LowRankUpdate, Kind]:
    """Return one module's update and kind; check that config and tensors agree."""
    factor_name = "lora_embedding_" if embedding else "lora_"
    if len(pair) == 1:
        lacking = "B" if "A" in pair else "A"
        raise SheetbendError(f"adapter {label}: module {module} has no {factor_name}{lacking}; save it again")
    A, B = pair["A"].detach(), pair["B"].detach()
    for factor, tensor in (("A", A), ("B", B)):
        if tensor.dtype not in _DTYPES:
            raise SheetbendError(
                f"adapter {label}: {module}.{factor_name}{factor} is {tensor.dtype}; save it as float32, bfloat16 or "
                "float16"
            )
        if not all_finite(tensor):
            raise SheetbendError(
                f"adapter {label}: {module}.{factor_name}{factor} holds NaN or infinity; train the adapter again"
            )
    kernel = list(A.shape[2:])
    shapes = f"module {module} has {factor_name}A {tuple(A.shape)} and {factor_name}B {tuple(B.shape)}"
    if A.ndim != B.ndim or A.ndim < 2 or A.ndim > 5 or (embedding and kernel) or any(size != 1 for size in B.shape[2:]):
        raise SheetbendError(f"adapter {label}: {shapes}, which are no factors of one weight; save it again")
    rank, scale = scaling(module, A.shape[0])
    if kernel and A.shape[0] == rank and B.shape[1] < rank and rank % max(B.shape[1], 1) == 0:
        raise SheetbendError(
            f"adapter {label}: {shapes}, so that its convolution is grouped, and LoRA on it is no update of its "
            "weight; train the adapter without it"
        )
    if A.shape[0] != rank or B.shape[1] != rank:
        raise SheetbendError(
            f"adapter {label}: {shapes}, but its config says rank {rank}; config and weights must come from one save"
        )
    if 0 in A.shape or 0 in B.shape:
        raise SheetbendError(f"adapter {label}: {shapes}, which are empty; save it again from gathered weights")
    kind: Kind = "embedding" if embedding else {"conv": kernel} if kernel else "linear"
    return LowRankUpdate(A=A.flatten(1), B=B.flatten(1), scale=scale), kind
