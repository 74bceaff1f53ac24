"""Configurations that nobody should run."""

import random
from typing import Any

import yaml

from tests.trust.fuzzing.mutate import mutated_bytes, mutated_tree

TAGS = (
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:subprocess.Popen [['touch', '{canary}']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary aGVsbG8=",
    "!!set {{a, b}}",
    "!!timestamp 2001-99-99",
    "!unknown x",
    "2001-01-01",
    "!!float nan",
    "0o777",
    "12:30:45",
    "~",
    "*undefined",
    "&a [*a]",
    "<<: *b",
    "? [a, b] : c",
)


def bomb(levels: int = 12, width: int = 9) -> str:
    """Return a map of lists of lists of aliases: small to read, ``width ** levels`` entries to look at."""
    lines = ["l0: &l0 [x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def mutated_yaml(rng: random.Random, tree: Any, outside: str) -> bytes:
    """Return a configuration with keys deleted, renamed, replaced by values of other types, or YAML with a purpose."""
    text = _dump(tree if rng.random() < 0.15 else mutated_tree(rng, tree, outside))
    match rng.randrange(14):
        case 0:
            lines = text.splitlines()
            place = rng.randrange(len(lines))
            key = lines[place].partition(":")[0]
            lines[place] = f"{key}: {rng.choice(TAGS).format(canary=f'{outside}/canary')}"
            text = "\n".join(lines) + "\n"
        case 1:
            text = rng.choice([bomb(), "a: &a {b: *a}\n", "<<: [*x]\n", "a: &a [*a, *a]\n"]) + text
        case 2:
            lines = text.splitlines()
            lines[rng.randrange(len(lines))] += rng.choice([" *l11", " &x", " #", ": :", "\t", " [", " {", " 'a"])
            text = bomb() + "\n".join(lines)
        case 3:
            depth = rng.choice([100, 2000, 50_000])
            text = f"{text}deep: {'[' * depth}{']' * depth}\n"
        case 4:
            text = rng.choice([text + text, text.replace("  ", "\t"), text.replace(":", ""), f"---\n{text}---\n{text}"])
        case 5:
            return mutated_bytes(rng, text.encode("utf-8", "surrogatepass"))
    return text.encode("utf-8", "surrogatepass")


def with_alias_of_bomb(tree: dict[str, Any], keys: tuple[str, ...]) -> bytes:
    """Return a configuration in which the value at ``keys`` is a bomb."""
    holder = tree
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = "BOMB"
    return (bomb() + _dump(tree).replace("BOMB", "*l11")).encode()


def _dump(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError, ValueError):  # of more digits than Python writes
        return repr(tree)
