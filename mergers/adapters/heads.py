"""Classifiers that were trained whole beside an adapter: one task's own, never merged."""

from pathlib import Path

import torch
from torch import Tensor

from mergers.adapters.files import is_file, own_copy, read_pickle, read_safetensors
from mergers.adapters.names import listed
from mergers.errors import SheetbendError
from mergers.functional.linalg import all_finite

HEAD_FILE = "head.safetensors"
PUBLISHED_HEADS_FILE = "heads.pt"
# The classifier of transformers' models for sequence classification, to which the published heads belong.
PUBLISHED_HEAD = "score.weight"


def read_heads(folder: Path, task: str, label: str) -> dict[str, Tensor]:
    """Return the head of one task from the files beside an adapter.

    Args:
        folder: May hold ``head.safetensors``, the parameters of the head by name; and ``heads.pt``, as published
            with KnOTS: a map from task to (classes, dimension), of which the task's own entry counts, or the only one.
        task: The adapter's name.
        label: How messages call the adapter.

    Returns:
        Name of the parameter to tensor; empty if there is neither file.
    """
    heads: dict[str, Tensor] = {}
    if is_file(folder / HEAD_FILE):
        heads.update(read_safetensors(folder / HEAD_FILE))
    if is_file(folder / PUBLISHED_HEADS_FILE):
        heads[PUBLISHED_HEAD] = _published_head(folder / PUBLISHED_HEADS_FILE, task)
    for name, tensor in heads.items():
        check_head(name, tensor, label)
    return heads


def check_head(name: str, tensor: Tensor, label: str) -> None:
    """Raise for a head in a floating dtype of eight bits or fewer, and for one that holds NaN or infinity."""
    if not tensor.is_floating_point():
        return
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise SheetbendError(
            f"adapter {label}: its head {name} is {tensor.dtype}; save it as float32, bfloat16 or float16"
        )
    if not all_finite(tensor):
        raise SheetbendError(f"adapter {label}: its head {name} holds NaN or infinity; train it again")


def _published_head(path: Path, task: str) -> Tensor:
    """Return the entry of ``task``, or the only entry."""
    entries = read_pickle(path)
    odd = [name for name, entry in entries.items() if not isinstance(name, str) or not isinstance(entry, Tensor)]
    if odd or not entries:
        raise SheetbendError(f"{path} is no map from task to tensor; remove it, or save a dictionary of tensors")
    if task not in entries and len(entries) > 1:
        raise SheetbendError(
            f"{path} holds heads of {listed(entries)}, none of {task!r}; name the adapter after one of them"
        )
    # A copy: what was read is mapped from the file, with the heads of all other tasks.
    head = task if task in entries else next(iter(entries))
    return own_copy(entries[head], head, path)
