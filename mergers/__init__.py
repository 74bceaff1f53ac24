"""Merging LoRA adapters of any rank, exactly, in their low-rank form. Needs torch and safetensors only."""

from mergers.adapters import adapter_from_state_dict, check_same_base, load_adapter, save_adapter
from mergers.errors import SheetbendError
from mergers.finishes import Iso
from mergers.merger import MergedAdapter, Merger
from mergers.methods import Mean, TaskArithmetic, Ties
from mergers.models import apply_adapter, weight_updates
from mergers.output import MergeSummary, save_merged
from mergers.spaces import Core, Full, KnOTS
from mergers.transforms import Dare, Star
from mergers.updates import Adapter, DenseUpdate, LowRankUpdate, Update

__all__ = [
    "Adapter",
    "Core",
    "Dare",
    "DenseUpdate",
    "Full",
    "Iso",
    "KnOTS",
    "LowRankUpdate",
    "Mean",
    "MergeSummary",
    "MergedAdapter",
    "Merger",
    "SheetbendError",
    "Star",
    "TaskArithmetic",
    "Ties",
    "Update",
    "adapter_from_state_dict",
    "apply_adapter",
    "check_same_base",
    "load_adapter",
    "save_adapter",
    "save_merged",
    "weight_updates",
]
