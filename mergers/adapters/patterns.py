"""PEFT's patterns of module names: regular expressions that somebody else wrote."""

import math
import re
from collections.abc import Mapping
from typing import Any

# What matching all patterns with all names may take, in steps of the bound below: seconds at the very most.
_MOST_STEPS = 10**9
_LITERAL = re.compile(r"\^?(?:[\w-]|\\\.)+")
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\\.)+")
_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_CHOICE = re.compile(r"[*+{]|(?<![*+?}(])\?")  # how often, or whether at all; not what only makes a repeat lazy


def is_plain(pattern: Any) -> bool:
    r"""Return whether a pattern means itself: a name, or the end of one.

    >>> is_plain("q_proj"), is_plain(r"^layers\.0\.q"), is_plain(r".*\.(q|k)_proj")
    (True, True, False)
    """
    return _PLAIN.fullmatch(str(pattern)) is not None


def has_patterns(selection: Mapping[str, Any]) -> bool:
    """Return whether what selects modules in PEFT holds a regular expression, which PEFT would run as it stands."""
    fields = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
    values = (selection.get(field) or () for field in fields)
    return not all(is_plain(one) for value in values for one in ([value] if isinstance(value, str) else value))


class Patterns:
    """Values by the patterns of module names that they are for.

    Of several patterns that match a name, or its end at a dot, the first one counts: PEFT's own rule.

    Args:
        patterns: Pattern to value.

    Raises:
        re.error: A pattern is no regular expression.
        ValueError: It is none that can be read.

    >>> Patterns({"q": 4, "layers.0.v": 2}).value("encoder.layers.0.v", 8)
    2
    """

    def __init__(self, patterns: Mapping[str, Any]):
        self._values = list(patterns.values())
        # Most are names, of which there may be thousands.
        self._names: dict[str, int] = {}
        self._others: list[tuple[int, str, re.Pattern]] = []
        for number, pattern in enumerate(patterns):
            if _LITERAL.fullmatch(pattern):
                self._names.setdefault(pattern.replace("\\", ""), number)
            else:
                try:
                    self._others.append((number, pattern, re.compile(rf"(.*\.)?({pattern})$")))
                except (RecursionError, OverflowError):
                    raise ValueError(f"{pattern[:40]!r} is too long a pattern") from None

    def require_cheap(self, names: int, longest: int) -> None:
        """Raise `ValueError` if matching could take for ever: some patterns take time exponential in a name.

        Args:
            names: How many will be matched.
            longest: Characters of the longest.
        """
        total = 0.0
        for _, pattern, _ in self._others:
            total += names * most_steps(pattern, longest)
            if total > _MOST_STEPS:
                raise ValueError(f"{pattern[:80]!r} may take for ever to match; give the names of the modules")

    def value(self, module: str, default: Any) -> Any:
        """Return the value for a module."""
        parts = module.split(".")
        ends = [f"^{module}", *(".".join(parts[start:]) for start in range(len(parts)))]
        first = min((self._names[end] for end in ends if end in self._names), default=len(self._values))
        for number, _, pattern in self._others:
            if number < first and pattern.match(module):
                return self._values[number]
        return self._values[first] if first < len(self._values) else default


def most_steps(pattern: str, length: int) -> float:
    r"""Return a bound on the steps of matching a name of ``length`` characters; infinite where there is none.

    Each repeat of a character begins and ends somewhere in the name, each group takes one of its alternatives, and
    backtracking may try all combinations. A repeated group may double them at each character.

    >>> most_steps(r"layers\.[0-9]+\.(q|v)", 20), most_steps(r"(a+)+b", 20)
    (924, inf)
    """
    bare = _ONE_CHARACTER.sub("x", pattern)
    if _REPEATED_GROUP.search(bare):
        return math.inf
    choices, groups = len(_CHOICE.findall(bare)), max(bare.count("("), 1)
    try:
        alternatives = (1 + bare.count("|") / groups) ** groups
        return math.ceil(math.comb(length + choices, choices) * alternatives * (length + 2))  # after each dot
    except OverflowError:
        return math.inf
