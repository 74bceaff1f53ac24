"""What a merge on disk was made of, in one hash, so that finished work is known as such."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergers.hashing import Digest
from mergers.output.summary import MERGE_FILE
from mergers.updates import Adapter

if TYPE_CHECKING:
    from mergers.merger import Merger

_FORMAT = "1"


def merge_key(
    merger: "Merger",
    adapters: Sequence[Adapter],
    hashes: Sequence[str],
    base_model: str | Path | None = None,
    **settings: Any,
) -> str:
    """Return a hash of all that the merged weights depend on, as 64 hexadecimal digits.

    Args:
        merger: How to merge; its whole representation counts.
        adapters: By names, values and heads, in their order; where they lie does not matter.
        hashes: Of their contents.
        base_model: Full model on disk; its files count by name, size and time, since reading it takes as long as
            the merge.
        settings: Of the output, such as the rank.
    """
    digest = Digest()
    for text in (_FORMAT, repr(merger), json.dumps(settings, sort_keys=True, default=str)):
        digest.add_text(text)
    for adapter, content in zip(adapters, hashes, strict=True):
        digest.add_text(f"{adapter.name}\x1f{adapter.base_model}\x1f{content}")
        for name, tensor in sorted(adapter.heads.items()):
            digest.add(name, tensor)
    if base_model is not None:
        for file in sorted(Path(base_model).iterdir()):
            found = file.stat()
            digest.add_text(f"{file.name}\x1f{found.st_size}\x1f{found.st_mtime_ns}")
    return digest.hexdigest()


def key_of(folder: Path) -> str | None:
    """Return the key that a merge on disk carries; none if it is no merge, or one that carries none."""
    try:
        key = json.loads((folder / MERGE_FILE).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None
