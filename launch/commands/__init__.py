"""Commands beside fit, validate and test; importing one, as its help does, imports no torch."""

from collections.abc import Callable, Sequence
from importlib import import_module

#: Name of each command, what it does, and the module whose ``run(words)`` it is.
COMMANDS = {
    "merge": ("Merge adapters into one adapter, or into a full model.", "launch.commands.merge"),
    "inspect": ("Say what merging would do to adapters: ranks, norms, overlaps.", "launch.commands.inspect"),
    "report": ("Put what runs have measured into one report, also as HTML.", "launch.commands.report"),
    "prepare": (
        "Download and check the model and the data of a configuration.",
        "launch.commands.prepare",
    ),
    "cache": ("Show the cache of alignments, or clear it.", "launch.commands.cache"),
}


def command(name: str) -> Callable[[Sequence[str]], None]:
    """Return what runs a command on its words; importing it is fast, and imports no torch."""
    return import_module(COMMANDS[name][1]).run
