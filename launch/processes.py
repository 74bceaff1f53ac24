"""Of several processes of one run, which one speaks."""

import os


def is_first() -> bool:
    """Return whether this is the only process of a run, or the first on its machine, as Lightning numbers them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
