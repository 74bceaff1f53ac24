"""Class vectors on disk, so that towers and training images are looked at once."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mergers.files import atomic_write, cache_folder, write_safetensors


def cached_vectors(facts: Any, make: Callable[[], Tensor]) -> Tensor:
    """Return what ``make`` returns, from disk where it was made from the same facts before.

    Args:
        facts: all that the vectors depend on, as JSON holds it.
        make: computes (C, d); called only when the vectors are not cached.
    """
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    path = cache_folder("heads") / f"{key}.safetensors"
    try:
        return load_file(path)["class_vectors"]
    except Exception:  # absent, or damaged: it is only a cache, and is made anew
        vectors = make()
    try:
        with atomic_write(path) as temporary:
            write_safetensors({"class_vectors": vectors}, temporary)
    except OSError:
        pass  # a home folder that can't be written costs time, not the run
    return vectors
