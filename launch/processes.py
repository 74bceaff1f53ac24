"""Of several processes of one run, which one speaks."""

import os

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # as torchrun, Lightning and SLURM number processes


def is_first() -> bool:
    """Return whether this is the only process of a run, or the first of several."""
    return int(next((os.environ[name] for name in _RANKS if os.environ.get(name, "").isdecimal()), "0")) == 0
