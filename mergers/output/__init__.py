"""Merged adapters out: PEFT folders, exact or truncated, and full models."""

from mergers.output.folder import check_target, require_savable, save_merged
from mergers.output.summary import MergeSummary, ModuleNumbers

__all__ = ["MergeSummary", "ModuleNumbers", "check_target", "require_savable", "save_merged"]
