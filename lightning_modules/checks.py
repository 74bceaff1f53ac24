"""Numbers and names that a user gives, checked where they arrive."""

import math
import re
from typing import Any

from mergers import SheetbendError


def check_number(
    name: str, value: Any, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise `SheetbendError` unless ``value`` is a finite number, at least ``least``, above ``above``, below ``below``.

    >>> check_number("patience", 3, least=1)
    >>> check_number("learning_rate", -1.0, above=0)
    Traceback (most recent call last):
        ...
    mergers.errors.SheetbendError: learning_rate is -1.0; give a number above 0
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and value >= least and value > above and value < below:
        return
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("of at least", least), ("above", above), ("below", below))
        if math.isfinite(bound)
    ]
    raise SheetbendError(f"{name} is {value}; give a number {' and '.join(bounds) or 'that is finite'}")


def check_folder_name(what: str, name: Any) -> None:
    """Raise `SheetbendError` unless ``name`` can name a folder, and so a result in tables and curves.

    >>> check_folder_name("merger", "knots-ties")
    >>> check_folder_name("merger", "a/b")
    Traceback (most recent call last):
        ...
    mergers.errors.SheetbendError: merger 'a/b' must name a folder: at most 64 letters, digits, _, +, - and inner dots
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+-]{0,63}", name):
        raise SheetbendError(f"{what} {name!r} must name a folder: at most 64 letters, digits, _, +, - and inner dots")
