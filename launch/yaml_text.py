"""Reading YAML that somebody else may have written: nothing in it is run, and nothing in it has no end."""

from typing import Any

import yaml

# Entries that a document may have once its aliases are written out; the largest of ours has some thousands.
_MOST_NODES = 1_000_000
# Lists in lists that it may have; ours have ten.
_MOST_LEVELS = 100


class EndlessError(yaml.YAMLError):
    """A document whose aliases stand for more than memory holds, or for themselves."""


class Bounded:
    """What a loader of PyYAML takes on to refuse documents without end, before anything is made of them.

    Raises:
        EndlessError: Lists and maps in it are nested too deeply, of which the loader in C dies.
    """

    def __init__(self, stream: str):
        _require_shallow(stream)
        super().__init__(stream)

    def construct_document(self, node: yaml.Node) -> Any:
        """Return what a document holds."""
        nodes_of(node)
        try:
            return super().construct_document(node)
        except ValueError as error:  # of a date that there is not, or a number of thousands of digits
            raise yaml.YAMLError(str(error)) from None


class Loader(Bounded, yaml.SafeLoader):
    """Plain values only: a tag that names a class or a function is an error."""


def load_yaml(text: str) -> Any:
    """Return what a YAML document holds.

    Raises:
        yaml.YAMLError: It is no YAML, asks for more than plain values, or has no end.
    """
    return yaml.load(text, Loader)


def _require_shallow(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise EndlessError(f"it has more than {_MOST_LEVELS} lists and maps inside each other; flatten it")


def nodes_of(root: yaml.Node) -> int:
    """Return how many entries a document has, those under an alias each time that it is named.

    Raises:
        EndlessError: There are too many, or a node holds itself.
    """
    sizes: dict[int, int] = {}
    stack = [root]
    opened = set()
    while stack:
        node = stack[-1]
        if id(node) in sizes:
            stack.pop()
            continue
        inner = _inner(node)
        if id(node) not in opened:
            opened.add(id(node))
            if any(id(one) in opened and id(one) not in sizes for one in inner):
                raise EndlessError("an alias in it stands for what it is part of; write it out")
            stack += [one for one in inner if id(one) not in sizes]
            continue
        stack.pop()
        sizes[id(node)] = 1 + sum(sizes[id(one)] for one in inner)
        if sizes[id(node)] > _MOST_NODES:
            raise EndlessError(f"its aliases stand for more than {_MOST_NODES:,} entries; write out what is needed")
    return sizes[id(root)]


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
