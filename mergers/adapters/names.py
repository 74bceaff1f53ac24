"""Names of modules: PEFT's prefix, names that can be trusted, and the prefix by which two sets of names differ."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from mergers.errors import SheetbendError

PEFT_PREFIX = "base_model.model."


def listed(names: Iterable[str], limit: int = 6) -> str:
    """Return the names in one line: all if they are few, else the first and a count.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def require_module_name(name: str, label: str) -> None:
    """Raise unless ``name`` is a dotted name without empty, unprintable or path-like parts."""
    if any(not part or not part.isprintable() or {"/", "\\", " "} & set(part) for part in name.split(".")):
        raise SheetbendError(
            f"adapter {label}: {name[:200]!r} is no name of a module (parts joined by dots); save the adapter again"
        )


class Renaming(NamedTuple):
    """One prefix that turns a set of names into another: put before them, or taken away."""

    add: str = ""
    strip: str = ""

    def __call__(self, name: str) -> str:
        """Return the new name."""
        return self.add + name.removeprefix(self.strip)


def renamings(names: Collection[str], known: Collection[str]) -> list[Renaming]:
    """Return every way to turn all ``names`` into known ones by one prefix.

    Args:
        names: The names to explain.
        known: The names that count, as a set or a map.

    Returns:
        Just the one that changes nothing where all names are known as they are; none where no prefix explains all.

    >>> renamings(["layers.0.q"], {"tower.layers.0.q", "head"})
    [Renaming(add='tower.', strip='')]
    >>> renamings(["tower.layers.0.q"], {"layers.0.q"})
    [Renaming(add='', strip='tower.')]
    """
    names = list(names)
    if not names or all(name in known for name in names):
        return [Renaming()]
    first = names[0]
    parts = first.split(".")
    candidates = [Renaming(add=name.removesuffix(first)) for name in known if name.endswith(f".{first}")]
    candidates += [Renaming(strip=".".join(parts[:count]) + ".") for count in range(1, len(parts))]
    return [
        renaming
        for renaming in candidates
        if all(name.startswith(renaming.strip) and renaming(name) in known for name in names)
    ]


def module_name(parameter: str) -> str:
    """Return the name under which an adapter holds the update of ``parameter``.

    A module's ``weight`` goes by the module's name, every other parameter by its own.

    >>> module_name("layers.0.q.weight"), module_name("layers.0.q.bias"), module_name("class_embedding")
    ('layers.0.q', 'layers.0.q.bias', 'class_embedding')
    """
    return "" if parameter == "weight" else parameter.removesuffix(".weight")
