"""Reading and writing adapters as PEFT folders."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.files import atomic_folder
from mergers.models import PEFT_PREFIX
from mergers.updates import Adapter, LowRankUpdate, Update

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, "README.md"}  # PEFT writes a model card

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# Fields of PEFT's LoraConfig that make an adapter more, or other, than W + scale * B @ A.
_FOREIGN_FIELDS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "modules_to_save",
)
# Initialisations that change the base weights, so that B @ A is not the difference from the base model.
_FOREIGN_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")

# What selects the adapted modules in PEFT; written back where all merged adapters agree on it.
_SELECTION_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def load_adapter(path: str | Path, name: str | None = None) -> Adapter:
    """Read a local PEFT LoRA folder.

    Args:
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: Name of the task; the folder's name if not given.

    Returns:
        An adapter of `LowRankUpdate`, float32, with PEFT's scale folded into ``scale``.

    Raises:
        SheetbendError: The folder is no adapter, or holds what is not plain LoRA on linear modules.
    """
    path = Path(path)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / file).is_file():
            problem = f"has no {file}" if path.is_dir() else "does not exist"
            raise SheetbendError(f"{path} is no PEFT adapter folder: it {problem}; give a folder that PEFT saved")
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SheetbendError(f"{path / CONFIG_FILE} is not JSON ({error}); save the adapter again") from None
    if not isinstance(config, dict):
        raise SheetbendError(f"{path / CONFIG_FILE} holds no JSON object; save the adapter again")
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise SheetbendError(
            f"{path / WEIGHTS_FILE} is no safetensors file ({error}); save the adapter again"
        ) from None
    adapter = adapter_from_state_dict(tensors, config, name=name or path.resolve().name, label=str(path))
    adapter.metadata["path"] = str(path)
    return adapter


def adapter_from_state_dict(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], name: str, label: str | None = None
) -> Adapter:
    """Build an adapter from what PEFT's ``get_peft_model_state_dict`` and ``LoraConfig.to_dict`` return.

    Args:
        tensors: ``[base_model.model.]MODULE.lora_A.weight`` (r, in) and ``...lora_B.weight`` (out, r).
        config: The fields of PEFT's LoraConfig.
        name: Name of the task.
        label: How messages call the adapter; ``name`` if not given.

    Raises:
        SheetbendError: It holds what is not plain LoRA on linear modules; the message names it.
    """
    label = label or name
    _refuse_foreign_config(config, label)
    factors: dict[str, dict[str, Tensor]] = {}
    foreign = []
    for key in tensors:
        match = _KEY.fullmatch(key.removeprefix(PEFT_PREFIX))
        if match is None or tensors[key].ndim != 2:
            foreign.append(key)
        else:
            factors.setdefault(match["module"], {})[match["factor"]] = tensors[key]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        shape = tuple(tensors[foreign[0]].shape)
        raise SheetbendError(
            f"adapter {label}: {foreign[0]} {shape}{more} is no lora_A or lora_B of a linear module; "
            "only LoRA on linear modules can be merged, train the adapter without it"
        )
    if not factors:
        raise SheetbendError(f"adapter {label}: its weights file holds no tensor; save the adapter again")
    updates: dict[str, Update] = {}
    for module, pair in factors.items():
        updates[module] = _low_rank_update(pair, module, config, label)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    metadata = {
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
        "fan_in_fan_out": bool(config.get("fan_in_fan_out", False)),
        "task_type": _plain(config.get("task_type")),
        "selection": {field: _plain(config.get(field)) for field in _SELECTION_FIELDS},
    }
    return Adapter(updates, name=name, base_model=config.get("base_model_name_or_path"), metadata=metadata)


def _plain(value: Any) -> Any:
    """Return a config value as JSON holds it: sets sorted into lists, enumerations as their values."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)


def _refuse_foreign_config(config: Mapping[str, Any], label: str) -> None:
    """Raise for a PEFT config that is not plain LoRA, naming the field."""
    peft_type = _plain(config.get("peft_type"))
    if peft_type != "LORA":
        raise SheetbendError(f"adapter {label}: peft_type is {peft_type!r}; only LORA adapters can be merged")
    if config.get("use_dora"):
        raise SheetbendError(
            f"adapter {label}: use_dora is true, and DoRA also rescales the base weight; train it without DoRA"
        )
    for field in _FOREIGN_FIELDS:
        if config.get(field):
            raise SheetbendError(
                f"adapter {label}: {field} is {config[field]!r}; only plain LoRA can be merged, train it without"
            )
    if config.get("bias", "none") != "none":
        raise SheetbendError(f"adapter {label}: bias is {config['bias']!r}; train it with bias 'none'")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_FOREIGN_INITS):
        raise SheetbendError(
            f"adapter {label}: init_lora_weights is {init!r}, which changes the base weights; "
            "convert it to plain LoRA with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _low_rank_update(pair: Mapping[str, Tensor], module: str, config: Mapping[str, Any], label: str) -> LowRankUpdate:
    """Return the update of one module, with PEFT's scale; check that config and tensors agree."""
    if len(pair) == 1:
        lacking = "B" if "A" in pair else "A"
        raise SheetbendError(f"adapter {label}: module {module} has no lora_{lacking}.weight; save it again")
    A, B = pair["A"], pair["B"]
    for factor, tensor in pair.items():
        if not tensor.is_floating_point():
            raise SheetbendError(f"adapter {label}: {module}.lora_{factor} is {tensor.dtype}; it must be floating")
        if not torch.isfinite(tensor).all():
            raise SheetbendError(
                f"adapter {label}: {module}.lora_{factor} holds NaN or infinity; train the adapter again"
            )
    try:
        rank = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise SheetbendError(
            f"adapter {label}: r, lora_alpha or their patterns in {CONFIG_FILE} are no numbers ({error}); save it again"
        ) from None
    if A.shape[0] != rank or B.shape[1] != rank:
        raise SheetbendError(
            f"adapter {label}: module {module} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}, "
            f"but its config says rank {rank}; config and weights must come from one save"
        )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LowRankUpdate(A=A.detach().float(), B=B.detach().float(), scale=scale)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches ``module`` or its end at a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


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
    dtype = dtype or _DTYPES.get(adapter.metadata.get("dtype", "float32"), torch.float32)
    tensors = {}
    ranks = {}
    for module, update in adapter.items():
        B, A = update.factors()
        if update.rank == 0:  # PEFT knows no rank 0: one direction of zeros instead
            B, A = B.new_zeros(B.shape[0], 1), A.new_zeros(1, A.shape[1])
        if not (A.to(dtype).isfinite().all() and B.to(dtype).isfinite().all()):
            raise SheetbendError(f"module {module}: its factors do not fit {dtype}; give dtype=torch.float32")
        ranks[module] = A.shape[0]
        # clone: factors that two modules share would be refused by safetensors
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = A.to("cpu", dtype).contiguous().clone()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = B.to("cpu", dtype).contiguous().clone()
    with atomic_folder(path) as folder:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(_peft_config(adapter, ranks), indent=2)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _peft_config(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields of a LoraConfig with alpha = r for every module."""
    # The commonest rank becomes r (the smaller of two equally common), the others are listed by exact name.
    counts = Counter(ranks.values())
    rank = min(counts, key=lambda value: (-counts[value], value))
    pattern = {f"^{re.escape(module)}": value for module, value in ranks.items() if value != rank}
    selection = adapter.metadata.get("selection") or {}
    if not selection.get("target_modules"):
        selection = {"target_modules": list(ranks)}
    return {
        "peft_type": "LORA",
        "task_type": adapter.metadata.get("task_type"),
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


def check_same_base(adapters: Sequence[Adapter], same_base: bool = False) -> None:
    """Raise unless all adapters fit one base model: its name, their modules and the shapes of these.

    Args:
        adapters: One a task.
        same_base: Accept base names that differ; the shapes must still agree. A missing name is always
            accepted.

    Raises:
        SheetbendError: They do not fit; the message names the first difference.
    """
    if not adapters:
        raise SheetbendError("no adapters to merge; give at least one")
    for adapter in adapters:
        if not adapter:
            raise SheetbendError(f"adapter {adapter.label}: it has no modules; train it on at least one")
        for module, update in adapter.items():
            if not all(torch.isfinite(tensor).all() for tensor in update.tensors().values()):
                raise SheetbendError(
                    f"adapter {adapter.label}: module {module} holds NaN or infinity; train it again, with a lower "
                    "learning rate if it has diverged"
                )
    first = adapters[0]
    named = next((adapter for adapter in adapters if adapter.base_model), None)
    for other in adapters[1:]:
        if not same_base and named and other.base_model and other.base_model != named.base_model:
            raise SheetbendError(
                f"adapter {other.label}: its base model is {other.base_model!r}, but {named.label} has "
                f"{named.base_model!r}; both must come from one base model "
                "(same_base=True accepts two names of one model)"
            )
        for holder, lacker in ((first, other), (other, first)):
            missing = [module for module in holder if module not in lacker]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise SheetbendError(
                    f"adapter {lacker.label}: has no module {missing[0]}{more}, but {holder.label} has; "
                    "all must adapt the same modules"
                )
        for module, update in first.items():
            if other[module].shape != update.shape:
                raise SheetbendError(
                    f"adapter {other.label}: module {module} is {other[module].shape}, but {first.label} has "
                    f"{update.shape}; both must come from one base model"
                )
        if first.metadata.get("fan_in_fan_out", False) != other.metadata.get("fan_in_fan_out", False):
            raise SheetbendError(
                f"adapter {other.label}: fan_in_fan_out differs from {first.label}; both must come from one base model"
            )
