"""What PEFT's LoraConfig says about the scale of an update, and what in it cannot be merged."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mergers.adapters.patterns import Patterns
from mergers.errors import SheetbendError

# What selects the adapted modules in PEFT; written back where all merged adapters agree on it.
SELECTION_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")

# Fields that make an adapter more, or other, than W + scale * B @ A, and what to do about each.
_FOREIGN_FIELDS = {
    "use_dora": "DoRA also rescales the base weight; train it without DoRA",
    "lora_bias": "a bias of lora_B is trained too; train it with lora_bias=False",
    "trainable_token_indices": "rows of an embedding are trained too; train it without, or with LoRA on the embedding",
    "target_parameters": "LoRA on bare parameters is no LoRA on modules; train it with target_modules alone",
    "alora_invocation_tokens": "aLoRA acts on some tokens only; train it as plain LoRA",
    "arrow_config": "Arrow routes between adapters; merge the adapters it routes between",
    "layer_replication": "the base model is rebuilt from repeated layers; train it on a base model of that shape",
    "use_qalora": "QALoRA pools its inputs; train it as plain LoRA",
    "use_bdlora": "BD-LoRA saves blocks of its factors; train it as plain LoRA",
    "kasa_config": "KaSA changes the base weights; train it as plain LoRA",
    "monteclora_config": "MonteCLoRA samples its weights; train it as plain LoRA",
    "megatron_config": "layers of Megatron are saved in parts; convert the adapter to plain LoRA",
}
# Fields that change nothing in what a trained adapter computes, or that are read elsewhere in this package.
_KNOWN_FIELDS = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("lora_dropout", "fan_in_fan_out", "bias", "modules_to_save", "init_lora_weights", *SELECTION_FIELDS),
        # how training began or was made cheaper
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
        # matter only beside a field that is refused
        *("megatron_core", "qalora_group_size"),
        # both halves of a tied pair are saved
        "ensure_weight_tying",
    )
)
# Initialisations that leave the base weights alone. The others that PEFT knows (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# change them, so that B @ A is not the difference from the base model.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")


def shown(value: Any) -> str:
    """Return ``repr(value)``, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def plain(value: Any) -> Any:
    """Return a config value as JSON holds it: sets sorted into lists, enumerations as their values."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)


def refuse_foreign_config(config: Mapping[str, Any], label: str) -> None:
    """Raise for a PEFT config that is not plain LoRA, naming the field.

    A field that this library does not know is refused too, unless it is empty, zero or false: what it does to the
    result cannot be told.
    """
    peft_type = plain(config.get("peft_type"))
    if peft_type != "LORA":
        raise SheetbendError(f"adapter {label}: peft_type is {shown(peft_type)}; only LORA adapters can be merged")
    for field, reason in _FOREIGN_FIELDS.items():
        if config.get(field):
            raise SheetbendError(f"adapter {label}: {field} is {shown(plain(config[field]))}: {reason}")
    if config.get("bias", "none") != "none":
        raise SheetbendError(
            f"adapter {label}: bias is {shown(config['bias'])}, so that biases are trained too; train it with bias "
            "'none'"
        )
    for field in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(field), bool | None):
            raise SheetbendError(f"adapter {label}: {field} is {shown(config[field])}; it must be true or false")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise SheetbendError(
            f"adapter {label}: init_lora_weights is {shown(init)}, which changes the base weights or is unknown; "
            "convert it to plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for field, value in config.items():
        if field not in _KNOWN_FIELDS and field not in _FOREIGN_FIELDS and value:
            raise SheetbendError(
                f"adapter {label}: {field} is {shown(plain(value))}, a field this version does not know; remove it "
                "from adapter_config.json if it does not change what the adapter computes"
            )


def selection_of(config: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return the fields that select modules, as JSON holds them."""
    selection = {field: plain(config.get(field)) for field in SELECTION_FIELDS}
    for field, value in selection.items():
        entries = value if isinstance(value, list | tuple) else [value]
        kinds = str | int | None if field == "layers_to_transform" else str | None
        if not all(isinstance(entry, kinds) for entry in entries):
            raise SheetbendError(
                f"adapter {label}: {field} is {shown(value)}; it must be a name or a list; save it again"
            )
    return selection


def saved_modules(config: Mapping[str, Any], label: str) -> tuple[str, ...]:
    """Return the entries of ``modules_to_save``."""
    entries = plain(config.get("modules_to_save")) or []
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) and entry for entry in entries):
        raise SheetbendError(f"adapter {label}: modules_to_save is {shown(entries)}; it must be a list of names")
    return tuple(entries)


def is_saved(key: str, entries: tuple[str, ...]) -> bool:
    """Return whether PEFT saves the parameter ``key`` for ``modules_to_save``: a module above it ends like an entry."""
    parts = key.split(".")
    return any(".".join(parts[:count]).endswith(entries) for count in range(1, len(parts))) if entries else False


def scaling(config: Mapping[str, Any], modules: Collection[str], label: str) -> Callable[[str], tuple[int, float]]:
    """Return what says of each module its rank, and alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    Args:
        config: The fields of PEFT's LoraConfig.
        modules: The names that will be asked for.
        label: How messages call the adapter.
    """
    ranks = _numbers(config, "r", "rank_pattern", modules, label)
    alphas = _numbers(config, "lora_alpha", "alpha_pattern", modules, label)

    def rank_and_scale(module: str) -> tuple[int, float]:
        rank, alpha = ranks(module), alphas(module)
        if rank != int(rank) or rank < 1:
            raise SheetbendError(
                f"adapter {label}: the rank of {module} is {rank:g}; it must be a positive whole number"
            )
        return int(rank), alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return rank_and_scale


def _numbers(
    config: Mapping[str, Any], field: str, pattern_field: str, modules: Collection[str], label: str
) -> Callable[[str], float]:
    """Return what says of a module ``config[field]``, or what the pattern that fits it says instead."""

    def fault(error: Exception) -> SheetbendError:
        return SheetbendError(
            f"adapter {label}: {field} or {pattern_field} in its config is no number ({shown(str(error))}); save it "
            "again"
        )

    def number(module: str) -> float:
        value = patterns.value(module, config.get(field, 8))
        try:
            if isinstance(value, bool | str) or not math.isfinite(float(value)):
                raise ValueError(f"{value!r}")
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise fault(error) from None

    try:
        patterns = Patterns(config.get(pattern_field) or {})
        patterns.require_cheap(len(modules), max(map(len, modules), default=0))
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise fault(error) from None
    return number
