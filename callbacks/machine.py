"""The machine that a run was on, and the memory it took."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from mergers.memory import peak_memory, total_memory


def machine(device: torch.device) -> dict[str, Any]:
    """Return cores, bytes of memory and, where it is not the CPU, the name of the device, as JSON can hold it."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "memory_bytes": total_memory()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["device_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    elif device.type != "cpu":
        found["device"] = device.type
    return found


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Return the most bytes that this process has held so far, in memory and on the GPU."""
    found = {"resident": peak_memory()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(device)
    return {name: value for name, value in found.items() if value}


def machine_words(meta: Mapping[str, Any]) -> list[str]:
    """Return what the metadata of results say of machine and memory, one fact a string; older ones say nothing.

    >>> machine_words({"machine": {"cores": 2, "memory_bytes": 25 * 2**30}, "peak_bytes": {"resident": 2.1e9}})
    ['2 cores', '25 GiB of memory', 'peak memory 2.1 GB']
    """
    found, peak = meta.get("machine") or {}, meta.get("peak_bytes") or {}
    words = [f"{found['cores']} core{'s' * (found['cores'] != 1)}"] if found.get("cores") else []
    words += [f"{found['memory_bytes'] / 2**30:.0f} GiB of memory"] if found.get("memory_bytes") else []
    if found.get("device"):
        own = found.get("device_memory_bytes")
        words.append(f"{found['device']}{f' with {own / 2**30:.0f} GiB' if own else ''}")
    words += [f"peak memory {size_words(peak['resident'])}"] if peak.get("resident") else []
    words += [f"{size_words(peak['gpu'])} on the GPU"] if peak.get("gpu") else []
    return words


def size_words(count: float) -> str:
    """Return bytes in GB or MB.

    >>> size_words(2.14e9), size_words(31e6)
    ('2.1 GB', '31 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
