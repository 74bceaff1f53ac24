"""Adapters as they are named on the command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from launch import cli

if TYPE_CHECKING:
    from mergers import Adapter


class Source(NamedTuple):
    """An adapter to be read: the task's name, and where it is."""

    name: str
    where: str


def sources(items: Sequence[str], names: Sequence[str] | None = None) -> list[Source]:
    """Return names and places of adapters.

    Args:
        items: Folders, files or hub ids, each with or without ``name=`` before it.
        names: One each, in place of all other names.

    A name that is not given is the folder's own. Where that would name two adapters, the nearest folders above in
    which they differ stand before it.
    """
    pairs = [_split(item) for item in items]
    if names is not None:
        if len(names) != len(items):
            cli.fail(f"--names has {len(names)} names for {len(items)} adapters; give one each")
        pairs = [(name, where) for name, (_, where) in zip(names, pairs, strict=True)]
    parts = [_parts(where) for _, where in pairs]
    chosen = [name or own[-1] for (name, _), own in zip(pairs, parts, strict=True)]
    for name in dict.fromkeys(chosen):
        twins = [index for index, other in enumerate(chosen) if other == name]
        if len(twins) == 1:
            continue
        same = next((i for n, i in enumerate(twins) if parts[i] in [parts[j] for j in twins[:n]]), None)
        if same is not None and names is None and not any(pairs[i][0] for i in twins):
            cli.fail(f"adapter {pairs[same][1]} is given twice; give each once, or names: --names NAME NAME")
        if names is not None or any(pairs[i][0] for i in twins):
            cli.fail(f"two adapters are named {name!r}; give each its own name")
        for index in twins:
            chosen[index] = f"{_telling(parts[index], [parts[i] for i in twins if i != index])}-{name}"
    again = next((name for n, name in enumerate(chosen) if name in chosen[:n]), None)
    if again is not None:
        cli.fail(f"two adapters would be named {again!r}; name them with --names, or as NAME=PATH")
    return [Source(name, where) for name, (_, where) in zip(chosen, pairs, strict=True)]


def _split(item: str) -> tuple[str | None, str]:
    """Return the name before ``=``, if there is one, and the rest."""
    match = re.fullmatch(r"([\w.+-]+)=(.+)", item)
    if match is None or Path(item).exists():
        return None, item
    return match[1], match[2]


def _parts(where: str) -> tuple[str, ...]:
    """Return the parts of a path or hub id; the last one names the adapter."""
    path = Path(where.partition("@")[0] if not Path(where).exists() else where)
    path = path.resolve() if path.exists() else path
    *above, last = path.parts or (where,)
    return (*above, path.stem if path.suffix in (".pt", ".safetensors") else last)


def _telling(own: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """Return the part nearest to the end in which ``own`` differs from all others."""
    for back in range(2, len(own) + 1):
        part = own[-back]
        if part != "/" and all(len(other) < back or other[-back] != part for other in others):
            return part
    return own[-2] if len(own) > 1 else own[-1]


def load(
    wanted: Sequence[Source], base: str | None = None, modules: Sequence[str] | None = None, linear: bool = False
) -> "list[Adapter]":
    """Read adapters; with ``base``, what is no adapter is read as the difference of a full checkpoint from it.

    Args:
        wanted: Names and places.
        base: Full checkpoint before training.
        modules: Ends of the names of the modules to take of a difference; all by default.
        linear: Whether these are linear layers, so that a LoRA adapter can hold them.
    """
    from mergers.adapters import CONFIG_FILE, load_adapter, load_difference

    adapters = []
    for name, where in wanted:
        if base is None or (Path(where) / CONFIG_FILE).exists() or where.endswith(".pt"):
            adapters.append(load_adapter(where, name))
        else:
            adapters.append(load_difference(where, base, name, modules, linear))
    return adapters


def local_paths(wanted: Sequence[Source], *others: str | None) -> list[Path]:
    """Return the places that are on this machine."""
    places = [where for _, where in wanted] + [other for other in others if other is not None]
    return [Path(place) for place in places if Path(place).exists()]


# What the library calls its arguments, and what they are called here.
_WORDS = (
    (r"give rank=, to keep", "give --rank K, to keep"),
    (r"or base_model=, to add", "or --into FOLDER, to add"),
    (r"give base_model=, to add", "give --into FOLDER, to add"),
    (r"or add the result to a full model", "or --into FOLDER, to add the result to a full model"),
    (r" ?\(modules=\[\.\.\.\], linear=True\)", ": --modules NAME..."),
    (r"modules=\[\.\.\.\]", "--modules NAME..."),
    (r"same_base=True", "--same-base"),
    (r"missing='zero'", "--missing zero"),
    (r"dtype=torch\.(\w+)", r"--dtype \1"),
    (r"\btorch\.(float32|float16|bfloat16)\b", r"\1"),
    (r"^(rank|dtype|coefficients|modules) (is|has|names|holds) ", r"--\1 \2 "),
    (r"^for_task is ", "--for-task is "),
)


def in_words_of_options(message: str) -> str:
    """Return a message of the library with options in place of its arguments.

    >>> in_words_of_options("rank is 0; give a whole number from 1 on")
    '--rank is 0; give a whole number from 1 on'
    """
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message
