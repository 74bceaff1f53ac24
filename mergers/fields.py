"""The settings of a merge by name, and a merge with one of them changed."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from mergers.errors import SheetbendError, did_you_mean
from mergers.merger import Merger


def settings_of(merger: Merger) -> dict[str, Any]:
    """Return every setting by its dotted name, as a configuration nests them.

    >>> from mergers import Dare, Merger, Ties
    >>> merger = Merger("knots", Ties(density=0.2), [Dare(0.1)])
    >>> found = settings_of(merger)
    >>> found["coefficients"], found["method.density"], found["transforms.0.drop_rate"], found["space.cutoff"]
    (1.0, 0.2, 0.1, 1e-06)
    """
    return dict(_settings(merger, ""))


def _settings(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in fields(part):
        name, value = f"{prefix}{field.name}", getattr(part, field.name)
        yield name, value
        steps = enumerate(value) if name == "transforms" else [(None, value)]
        for index, step in steps:
            if is_dataclass(step):
                yield from _settings(step, f"{name}." if index is None else f"{name}.{index}.")


class AmbiguousSettingError(SheetbendError):
    """A short name that several steps of a merge have."""


def find_setting(merger: Merger, name: str) -> str:
    """Return the dotted name of the setting that ``name`` means: the whole, or an end of it that no other has.

    The class of a step may stand for where it is.

    >>> from mergers import Dare, Merger, Ties
    >>> merger = Merger("knots", Ties(density=0.2), [Dare(0.1)])
    >>> find_setting(merger, "density"), find_setting(merger, "Dare.drop_rate")
    ('method.density', 'transforms.0.drop_rate')

    Raises:
        SheetbendError: There is none, or several.
    """
    known = settings_of(merger)
    if name in known:
        return name
    found = [path for path, by_class in _by_class(merger, known).items() if by_class == name]
    found = found or [path for path in known if path.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousSettingError(f"{name!r} is a setting of several steps; give {' or '.join(found)}")
    close = did_you_mean(name, names_of(merger))
    raise SheetbendError(f"{merger}: there is no setting {name!r}{close}; it has {', '.join(dict.fromkeys(known))}")


def names_of(merger: Merger) -> list[str]:
    """Return every name that a setting may have: whole, by the class of its step, and short.

    >>> names_of(Merger("full", "mean"))
    ['space', 'method', 'transforms', 'coefficients', 'finish']
    """
    known = settings_of(merger)
    return list(
        dict.fromkeys([*known, *_by_class(merger, known).values(), *(path.rpartition(".")[2] for path in known)])
    )


def _by_class(merger: Merger, known: Iterable[str]) -> dict[str, str]:
    return {path: f"{_owner(merger, path)}.{path.rpartition('.')[2]}" for path in known if "." in path}


def _owner(merger: Merger, path: str) -> str:
    """Return the class of the part whose setting ``path`` is."""
    part: Any = merger
    for key in path.split(".")[:-1]:
        part = part[int(key)] if key.isdigit() else getattr(part, key)
    return type(part).__name__


def with_setting(merger: Merger, name: str, value: Any) -> Merger:
    """Return the merge with one setting changed.

    >>> from mergers import Merger, Ties
    >>> str(with_setting(Merger("knots", Ties(density=0.2)), "density", 0.3))
    'Ties(density=0.3), in KnOTS space'

    Raises:
        SheetbendError: There is no such setting, or it takes no such value.
    """
    path = find_setting(merger, name)
    try:
        return _with(merger, path.split("."), value)
    except TypeError:  # compared with a number, say
        raise SheetbendError(f"{path} cannot be {value!r}; it is {settings_of(merger)[path]!r} by default") from None


def _with(part: Any, keys: list[str], value: Any) -> Any:
    key, *rest = keys
    if key.isdigit():
        steps = list(part)
        steps[int(key)] = _with(steps[int(key)], rest, value)
        return steps
    if not rest:
        _check_kind(part, key, value)
    return replace(part, **{key: _with(getattr(part, key), rest, value) if rest else value})


def _check_kind(part: Any, key: str, value: Any) -> None:
    """Refuse what is of another kind than the field says; the classes themselves look at sizes."""
    kind = get_type_hints(type(part)).get(key)
    kinds = {bool: ("true or false", bool), int: ("a whole number", int), float: ("a number", (int, float))}
    if kind in kinds and (not isinstance(value, kinds[kind][1]) or (isinstance(value, bool) and kind is not bool)):
        raise SheetbendError(f"{type(part).__name__} {key} is {value!r}; give {kinds[kind][0]}")
