"""Merging LoRA adapters of any rank, exactly, in their low-rank form. Needs torch and safetensors only."""

from mergers.adapters import (
    adapter_from_state_dict,
    align,
    check_same_base,
    load_adapter,
    load_difference,
    save_adapter,
)
from mergers.errors import SheetbendError
from mergers.finishes import Iso, Truncate
from mergers.merged import MergedAdapter
from mergers.merger import Merger
from mergers.methods import TSV, Cart, IsoCTS, Mean, MetaGPT, TallMasks, TaskArithmetic, Ties, Wudi
from mergers.models import apply_adapter, weight_updates
from mergers.output import MergeSummary, save_merged
from mergers.presets import PRESETS, preset
from mergers.spaces import Core, Full, KnOTS
from mergers.transforms import Breadcrumbs, Dare, Della, Star
from mergers.updates import Adapter, DenseUpdate, LowRankUpdate, Update

__all__ = [
    "PRESETS",
    "TSV",
    "Adapter",
    "Breadcrumbs",
    "Cart",
    "Core",
    "Dare",
    "Della",
    "DenseUpdate",
    "Full",
    "Iso",
    "IsoCTS",
    "KnOTS",
    "LowRankUpdate",
    "Mean",
    "MergeSummary",
    "MergedAdapter",
    "Merger",
    "MetaGPT",
    "SheetbendError",
    "Star",
    "TallMasks",
    "TaskArithmetic",
    "Ties",
    "Truncate",
    "Update",
    "Wudi",
    "adapter_from_state_dict",
    "align",
    "apply_adapter",
    "check_same_base",
    "load_adapter",
    "load_difference",
    "preset",
    "save_adapter",
    "save_merged",
    "weight_updates",
]
