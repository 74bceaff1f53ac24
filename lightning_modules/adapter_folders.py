"""PEFT folders into a model, and out of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from lightning_modules.full_checkpoints import Donors, Unadapted, is_full_checkpoint, load_full_checkpoint
from lightning_modules.lora import add_adapter
from mergers import Adapter, LowRankUpdate, SheetbendError, load_adapter
from mergers.adapters import ADAPTER_FILES, WEIGHTS_FILE
from mergers.adapters.files import read_pickle, read_safetensors
from mergers.adapters.heads import HEAD_FILE
from mergers.adapters.hub import fetch, is_hub_id
from mergers.adapters.kinds import kind_of
from mergers.adapters.patterns import has_patterns
from mergers.adapters.peft import PICKLED_WEIGHTS_FILE
from mergers.adapters.write import peft_module
from mergers.files import atomic_folder, write_safetensors
from mergers.models import PEFT_PREFIX, match_parameters

METRICS_FILE = "metrics.json"


@dataclass
class Installed:
    """A backbone with the adapters of several tasks.

    Attributes:
        model: carries every LoRA adapter under its task's name.
        donors: the tasks whose update is that of a full checkpoint, which `model` does not carry.
        heads: by task, what came with its adapter for it alone: name of the parameter to tensor.
    """

    model: PeftModel | Unadapted
    donors: Donors = field(default_factory=Donors)
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def fill_in(source: str, task: str) -> str:
    """Return ``source`` with the name of the task for ``{task}``.

    >>> fill_in("hoffman-lab/KnOTS-ViT-B-32_lora_R16_{task}", "dtd")
    'hoffman-lab/KnOTS-ViT-B-32_lora_R16_dtd'
    """
    return source.replace("{task}", task)


def find_adapters(source: str | dict[str, str], tasks: list[str]) -> dict[str, str]:
    """Return where the adapter or full checkpoint of each task is: a folder, a file or a hub id.

    Args:
        source: a folder with one PEFT folder a task in it; a folder, file or hub id with ``{task}`` in its name; or a
            map from task name to such a place.
        tasks: the names of the tasks.
    """
    if isinstance(source, dict):
        missing = [task for task in tasks if task not in source]
        if missing:
            raise SheetbendError(f"adapters name no folder for {', '.join(missing)}; add `{missing[0]}: PATH`")
        return {task: source[task] for task in tasks}
    if "{task}" in source:
        return {task: fill_in(source, task) for task in tasks}
    folders = {task: Path(source) / task for task in tasks}
    missing = [task for task, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise SheetbendError(
            f"{Path(source).absolute()} has no adapter of {', '.join(missing)}; train first with `sheetbend fit`, or "
            "give model.init_args.adapters a map from task name to PEFT folder"
        )
    return {task: str(folder) for task, folder in folders.items()}


def refuse_full_checkpoints(sources: dict[str, str]) -> None:
    """Raise `SheetbendError` if one of ``sources`` is a whole model, which has no adapter to train."""
    full = [task for task, source in sources.items() if is_full_checkpoint(source)]
    if full:
        raise SheetbendError(
            f"adapters of {', '.join(full)} are full checkpoints, which can be tested and merged but not trained; "
            "leave them out of this fit"
        )


def install_adapters(
    backbone: nn.Module, sources: dict[str, str], base_name: str, head: str | None = None
) -> Installed:
    """Freeze ``backbone`` and load one adapter a task into it, under the task's name.

    Full checkpoints are kept beside it as differences; where other tasks have LoRA adapters, of the modules that these
    change alone, since all tasks of a merge must change the same ones.

    Args:
        backbone: the base model.
        sources: by task, what `mergers.load_adapter` or `mergers.load_difference` reads.
        base_name: the base model's name.
        head: name of the head that was taken off the backbone; adapters may hold one in ``modules_to_save``.

    Raises:
        SheetbendError: a source cannot be read, or belongs to another base model.
    """
    full = [task for task, source in sources.items() if is_full_checkpoint(source)]
    adapters = {task: load_adapter(source, name=task) for task, source in sources.items() if task not in full}
    heads = {task: dict(adapter.heads) for task, adapter in adapters.items()}
    names: dict[str, dict[str, str]] = {}  # by task: the adapter's name of a module to the backbone's
    for task, adapter in adapters.items():
        check_base(adapter, sources[task], base_name)
        # Refuses modules that are missing or of another shape.
        places = match_parameters(adapter, backbone)
        names[task] = {module: place.removesuffix(".weight") for module, place in places.items()}
    lora_modules = {module for of_task in names.values() for module in of_task.values()} or None
    donors = {}
    for task in full:
        donors[task] = load_full_checkpoint(sources[task], task, backbone, base_name, head, lora_modules)
        heads[task] = dict(donors[task].heads)
    model = None
    for task, adapter in adapters.items():
        model = _install(model, backbone, adapter, names[task], sources[task], base_name, head)
    return Installed(model or Unadapted(backbone), Donors(donors), {task: heads[task] for task in sources})


def _install(
    model: PeftModel | None,
    backbone: nn.Module,
    adapter: Adapter,
    names: dict[str, str],
    source: str,
    base_name: str,
    head: str | None,
) -> PeftModel:
    """Load one LoRA adapter into ``model``, or into a new one around ``backbone``."""
    odd = [module for module in adapter if kind_of(adapter.metadata, module) not in ("linear", "in_proj")]
    if odd:
        raise SheetbendError(
            f"adapter {source}: it has {odd[0]}, not linear; only adapters of linear layers can be tested here"
        )
    config, weights = _peft_parts(adapter, names, source, base_name)
    saved = [key for key in weights if ".lora_" not in key]
    foreign = [key for key in saved if not (head and key.removeprefix(PEFT_PREFIX).startswith(f"{head}."))]
    if foreign:
        raise SheetbendError(
            f"adapter {source}: it has modules_to_save {sorted(config.modules_to_save or ())} ({foreign[0]}); only "
            + (f"a head named {head} has a place here" if head else "adapters of linear layers can be tested here")
        )
    weights = {key: value for key, value in weights.items() if key not in saved}
    config.modules_to_save, config.task_type, config.inference_mode = None, None, False  # heads are kept apart
    if head and isinstance(config.exclude_modules, set | list):  # the head's layers, which the backbone has not
        config.exclude_modules = {one for one in config.exclude_modules if not one.startswith(f"{head}.")} or None
    try:
        model = add_adapter(model or backbone, adapter.name, config)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SheetbendError(f"adapter {source}: PEFT refuses its configuration ({reason}); save it again") from None
    expected = get_peft_model_state_dict(model, adapter_name=adapter.name, save_embedding_layers=False)
    odd = sorted(set(weights) ^ set(expected))
    if odd:
        place = base_name if odd[0] in weights else "its weights"
        raise SheetbendError(f"adapter {source}: {odd[0]} has no place in {place}; save the adapter again")
    set_peft_model_state_dict(model, weights, adapter_name=adapter.name)
    return model


def _peft_parts(
    adapter: Adapter, names: dict[str, str], source: str, base_name: str
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return an adapter's configuration and tensors under the names of the backbone."""
    if Path(source).is_file():  # of KnOTS, without a configuration: scale one
        config = _exact_config(LoraConfig(base_model_name_or_path=base_name), adapter, names)
        weights = {
            f"{PEFT_PREFIX}{names[module]}.lora_{factor}.weight": tensor
            for module, update in adapter.items()
            for factor, tensor in (("A", update.A), ("B", update.B))
        }
        return config, weights
    folder = fetch(source, ADAPTER_FILES) if is_hub_id(source) else Path(source)
    try:
        config = LoraConfig.from_pretrained(folder)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SheetbendError(f"adapter {source}: PEFT refuses its configuration ({reason}); save it again") from None
    pickled = not (folder / WEIGHTS_FILE).is_file()
    weights = read_pickle(folder / PICKLED_WEIGHTS_FILE) if pickled else read_safetensors(folder / WEIGHTS_FILE)
    weights = {f"{PEFT_PREFIX}{key.removeprefix(PEFT_PREFIX)}": value for key, value in weights.items()}
    old, new = next(iter(names.items()))
    if old != new:  # saved for a part of this model, or for a whole of which it is a part: one prefix differs
        add, strip = (new.removesuffix(old), "") if new.endswith(old) else ("", old.removesuffix(new))
        weights = {
            PEFT_PREFIX + add + key.removeprefix(PEFT_PREFIX).removeprefix(strip) if ".lora_" in key else key: value
            for key, value in weights.items()
        }
    if old != new or has_patterns(config.to_dict()):
        config = _exact_config(config, adapter, names)
    return config, weights


def _exact_config(config: LoraConfig, adapter: Adapter, names: dict[str, str]) -> LoraConfig:
    """Return ``config`` with modules, ranks and scales by the exact names that ``adapter`` has in the backbone."""
    updates: dict[str, LowRankUpdate] = {
        peft_module(names[module], kind_of(adapter.metadata, module)): update for module, update in adapter.items()
    }
    config.target_modules = set(updates)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.use_rslora = False
    config.r = next(iter(updates.values())).rank
    config.lora_alpha = config.r
    config.rank_pattern = {name: update.rank for name, update in updates.items() if update.rank != config.r}
    config.alpha_pattern = {
        name: update.scale * update.rank
        for name, update in updates.items()
        if update.scale * update.rank != config.lora_alpha
    }
    return config


def check_base(adapter: Adapter, source: str | Path, base_name: str) -> None:
    """Raise `SheetbendError` if an adapter from ``source`` names another base model than ``base_name``."""
    if adapter.base_model is not None and not _same_base(adapter.base_model, base_name):
        raise SheetbendError(
            f"adapter {source}: its base model is {adapter.base_model}, this run's is {base_name}; give "
            "that model as model.init_args.backbone, or adapters of this one"
        )


def _same_base(left: str, right: str) -> bool:
    """Return whether two names may stand for one model: equal hub ids, or folders of one name."""
    left, right = _cached_id(left), _cached_id(right)
    hub_ids = left.count("/") == right.count("/") == 1
    return left == right if hub_ids else Path(left).name == Path(right).name


def _cached_id(name: str) -> str:
    """Return the hub id of a folder in the hub's cache, which some adapters name on their authors' machine.

    >>> _cached_id("/data/hub/models--openai--clip-vit-base-patch32/snapshots/3d74acf9")
    'openai/clip-vit-base-patch32'
    """
    repository = next((part for part in Path(name).parts if part.startswith("models--")), None)
    return name if repository is None else repository.removeprefix("models--").replace("--", "/", 1)


def write_adapter(model: PeftModel, task: str, folder: Path, head: dict[str, Tensor], metrics: dict[str, Any]) -> None:
    """Write one task's adapter as it stands: a PEFT folder, with its metrics beside it.

    `PeftModel.from_pretrained(base, folder)` loads it. What of ``head`` belongs to a module that the adapter's
    configuration names in ``modules_to_save`` stands among the weights, as PEFT has it; any other head in
    ``head.safetensors`` beside them. The folder appears whole or not at all.
    """
    state = get_peft_model_state_dict(model, adapter_name=task, save_embedding_layers=False)
    config = LoraConfig(**{**model.peft_config[task].to_dict(), "inference_mode": True})
    if not isinstance(config.target_modules, str):  # a set, which would be written in another order each time
        config.target_modules = sorted(config.target_modules)
    if isinstance(config.exclude_modules, set):
        config.exclude_modules = sorted(config.exclude_modules)
    inside, beside = _sorted_head(head, config.modules_to_save or ())
    with atomic_folder(folder) as temporary:
        write_safetensors(state | inside, temporary / WEIGHTS_FILE)
        config.save_pretrained(temporary)
        if beside:
            write_safetensors(beside, temporary / HEAD_FILE)
        (temporary / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")


def _sorted_head(head: dict[str, Tensor], saved: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what of ``head`` PEFT would save with the weights, by its keys, and the rest."""
    inside = {name for name in head if name.split(".")[0] in saved}
    return (
        {PEFT_PREFIX + name: head[name] for name in head if name in inside},
        {name: head[name] for name in head if name not in inside},
    )
