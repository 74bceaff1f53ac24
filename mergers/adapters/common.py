"""What several adapters have in common."""

from collections.abc import Sequence
from typing import Any

from mergers.updates import Adapter


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
