"""Adapters in and out: PEFT folders, hub ids, published .pt files, and differences of full checkpoints."""

from mergers.adapters.checks import align, check_same_base
from mergers.adapters.differences import load_difference
from mergers.adapters.load import ADAPTER_FILES, load_adapter
from mergers.adapters.names import PEFT_PREFIX
from mergers.adapters.peft import CONFIG_FILE, WEIGHTS_FILE, adapter_from_state_dict
from mergers.adapters.write import save_adapter

__all__ = [
    "ADAPTER_FILES",
    "CONFIG_FILE",
    "PEFT_PREFIX",
    "WEIGHTS_FILE",
    "adapter_from_state_dict",
    "align",
    "check_same_base",
    "load_adapter",
    "load_difference",
    "save_adapter",
]
