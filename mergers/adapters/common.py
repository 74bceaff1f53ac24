"""What several adapters have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergers.adapters.kinds import Kind
from mergers.updates import Adapter


def common_dtype(names: Iterable[str]) -> str:
    """Return the one dtype that these names are, or float32 where they differ.

    >>> common_dtype(["bfloat16", "bfloat16"]), common_dtype(["bfloat16", "float16"])
    ('bfloat16', 'float32')
    """
    found = set(names)
    return found.pop() if len(found) == 1 else "float32"


def facts_without_config(dtypes: Iterable[str], kinds: Mapping[str, Kind], label: str) -> dict[str, Any]:
    """Return the metadata of an adapter that comes from ``label`` without a PEFT config."""
    return {
        "dtype": common_dtype(dtypes),
        "fan_in_fan_out": False,
        "task_type": None,
        "selection": {},
        "kinds": dict(kinds),
        "path": label,
    }


def common_facts(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Return ``base_model`` and ``metadata`` of a merged adapter: what all adapters agree on, and the tasks.

    Notes and kinds of modules are kept from whichever adapter has them.
    """
    first = adapters[0].metadata
    metadata = {
        key: value
        for key, value in first.items()
        if key != "path" and all(adapter.metadata.get(key) == value for adapter in adapters)
    }
    metadata["tasks"] = [adapter.name for adapter in adapters]
    notes = list(dict.fromkeys(note for adapter in adapters for note in adapter.metadata.get("notes", [])))
    if notes:
        metadata["notes"] = notes
    kinds = {module: kind for adapter in adapters for module, kind in (adapter.metadata.get("kinds") or {}).items()}
    if kinds:
        metadata["kinds"] = kinds
    base_model = next((adapter.base_model for adapter in adapters if adapter.base_model), None)
    return {"base_model": base_model, "metadata": metadata}
