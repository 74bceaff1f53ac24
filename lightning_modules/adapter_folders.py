"""PEFT folders into a model, and out of it."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from mergers import SheetbendError, load_adapter
from mergers.adapters.kinds import kind_of
from mergers.files import atomic_folder, write_safetensors
from mergers.models import match_parameters

HEAD_FILE = "head.safetensors"
METRICS_FILE = "metrics.json"


def find_adapters(source: str | dict[str, str], tasks: list[str]) -> dict[str, Path]:
    """Return the PEFT folder of each task.

    Args:
        source: a folder with one PEFT folder a task in it, or a map from task name to PEFT folder.
        tasks: the names of the tasks.
    """
    if isinstance(source, dict):
        missing = [task for task in tasks if task not in source]
        if missing:
            raise SheetbendError(f"adapters name no folder for {', '.join(missing)}; add `{missing[0]}: PATH`")
        return {task: Path(source[task]) for task in tasks}
    folders = {task: Path(source) / task for task in tasks}
    missing = [task for task, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise SheetbendError(
            f"{Path(source).absolute()} has no adapter of {', '.join(missing)}; train first with `sheetbend fit`, or "
            "give model.init_args.adapters a map from task name to PEFT folder"
        )
    return folders


def install_adapters(backbone: nn.Module, folders: dict[str, Path], base_name: str) -> PeftModel:
    """Freeze ``backbone`` and load one PEFT folder a task into it, under the task's name.

    Raises:
        SheetbendError: a folder is no LoRA adapter, or belongs to another base model.
    """
    model = None
    for task, folder in folders.items():
        adapter = load_adapter(folder, name=task)
        if adapter.base_model is not None and not _same_base(adapter.base_model, base_name):
            raise SheetbendError(
                f"adapter {folder}: its base model is {adapter.base_model}, this run's is {base_name}; give that "
                "model as model.init_args.backbone, or adapters of this one"
            )
        match_parameters(adapter, model or backbone)  # refuses modules that are missing or of another shape
        config = LoraConfig.from_pretrained(folder)
        odd = [module for module in adapter if kind_of(adapter.metadata, module) != "linear"]
        if config.modules_to_save or odd:
            what = (
                f"modules_to_save {list(config.modules_to_save)}" if config.modules_to_save else f"{odd[0]}, not linear"
            )
            raise SheetbendError(f"adapter {folder}: it has {what}; only adapters of linear layers can be tested here")
        config.inference_mode = False
        try:
            if model is None:
                model = PeftModel(backbone, config, adapter_name=task)
            else:
                model.add_adapter(task, config)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SheetbendError(
                f"adapter {folder}: PEFT refuses its configuration ({reason}); save it again"
            ) from None
        weights = load_file(folder / "adapter_model.safetensors")
        expected = get_peft_model_state_dict(model, adapter_name=task, save_embedding_layers=False)
        odd = sorted(set(weights) ^ set(expected))
        if odd:
            place = base_name if odd[0] in weights else "adapter_model.safetensors"
            raise SheetbendError(f"adapter {folder}: {odd[0]} has no place in {place}; save the adapter again")
        set_peft_model_state_dict(model, weights, adapter_name=task)
    return model


def _same_base(left: str, right: str) -> bool:
    """Return whether two names may stand for one model: equal hub ids, or folders of one name."""
    hub_ids = left.count("/") == right.count("/") == 1
    return left == right if hub_ids else Path(left).name == Path(right).name


def write_adapter(model: PeftModel, task: str, folder: Path, head: dict[str, Tensor], metrics: dict[str, Any]) -> None:
    """Write one task's adapter as it stands: a PEFT folder, with its head and its metrics beside it.

    `PeftModel.from_pretrained(base, folder)` loads it. The folder appears whole or not at all.
    """
    state = get_peft_model_state_dict(model, adapter_name=task, save_embedding_layers=False)
    config = LoraConfig(**{**model.peft_config[task].to_dict(), "inference_mode": True})
    if not isinstance(config.target_modules, str):  # a set, which would be written in another order each time
        config.target_modules = sorted(config.target_modules)
    with atomic_folder(folder) as temporary:
        write_safetensors(state, temporary / "adapter_model.safetensors")
        config.save_pretrained(temporary)
        if head:
            write_safetensors(head, temporary / HEAD_FILE)
        (temporary / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
