"""Callbacks: merging in the evaluation loop, adapters on disk, results on screen and disk."""

from callbacks.adaptation import AdaptationCheckpoint
from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.memory import MemoryForecast
from callbacks.merge import MergeCallback
from callbacks.progress import PlainProgress
from callbacks.results_callback import ResultsCallback

__all__ = [
    "AdaptationCheckpoint",
    "AdapterCheckpoint",
    "MemoryForecast",
    "MergeCallback",
    "PlainProgress",
    "ResultsCallback",
]
