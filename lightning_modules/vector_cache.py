"""Class vectors on disk, so that towers and training images are looked at once."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mergers.files import atomic_write, cache_folder, write_safetensors
from mergers.hashing import Digest


def cached_vectors(facts: Any, make: Callable[[], Tensor]) -> Tensor:
    """Return what ``make`` returns, from disk where it was made from the same facts before.

    Args:
        facts: all that the vectors depend on, as JSON holds it.
        make: computes (C, d); called only when the vectors are not cached.
    """
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    path = cache_folder("heads") / f"{key}.safetensors"
    try:
        return _read(path)
    except Exception:  # absent, or damaged: it is only a cache, and is made anew
        vectors = make()
    try:
        with atomic_write(path) as temporary:
            write_safetensors({"class_vectors": vectors}, temporary, {"sha256": _hash_of(vectors)})
    except OSError:
        pass  # a home folder that can't be written costs time, not the run
    return vectors


def _read(path: Path) -> Tensor:
    """Return the vectors in a file; raise if they are not those that were written."""
    with safe_open(path, framework="pt") as file:
        vectors = file.get_tensor("class_vectors").clone()
        if file.metadata()["sha256"] != _hash_of(vectors):
            raise ValueError(f"{path} is damaged")
    return vectors


def _hash_of(vectors: Tensor) -> str:
    digest = Digest()
    digest.add("class_vectors", vectors)
    return digest.hexdigest()
