"""Commands that need no model and no data, so that they import neither Lightning nor transformers."""

from collections.abc import Callable, Sequence
from importlib import import_module

#: Name of each command, what it does, and the module whose ``run(words)`` it is.
COMMANDS = {
    "merge": ("Merge adapters into one adapter, or into a full model.", "launch.commands.merge"),
    "inspect": ("Say what merging would do to adapters: ranks, norms, overlaps.", "launch.commands.inspect"),
    "cache": ("Show the cache of alignments, or clear it.", "launch.commands.cache"),
}


def command(name: str) -> Callable[[Sequence[str]], None]:
    """Return what runs a command on its words; importing it is fast, and imports no torch."""
    return import_module(COMMANDS[name][1]).run
