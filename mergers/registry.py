"""Finding spaces, methods and transforms by name: what a package's ``__init__`` lists is known."""

import dataclasses
import importlib
import inspect
from typing import TypeVar

from mergers.errors import SheetbendError, did_you_mean

T = TypeVar("T")


def registered(package: str, base: type[T]) -> dict[str, type[T]]:
    """Return the concrete classes of ``package.__all__`` that derive from ``base``, by class name."""
    module = importlib.import_module(package)
    classes = {name: getattr(module, name) for name in module.__all__}
    return {name: cls for name, cls in classes.items() if issubclass(cls, base) and not inspect.isabstract(cls)}


def resolve(value: T | str, package: str, base: type[T]) -> T:
    """Return ``value``, or the class of that name with its defaults.

    Names match without regard to case, hyphens and underscores.

    >>> from mergers.methods.base import Method
    >>> resolve("task_arithmetic", "mergers.methods", Method)
    TaskArithmetic()

    Raises:
        SheetbendError: No class has this name, or it has fields without default.
    """
    if isinstance(value, base):
        return value
    kind = base.__name__.lower()
    classes = registered(package, base)
    if not isinstance(value, str):
        raise SheetbendError(f"{kind} is {value!r}; give a {base.__name__} or one of the names {', '.join(classes)}")
    by_key = {_key(name): cls for name, cls in classes.items()}
    cls = by_key.get(_key(value))
    if cls is None:
        close = did_you_mean(_key(value), list(by_key))
        for key, known in by_key.items():
            close = close.replace(repr(key), repr(known.__name__))
        raise SheetbendError(f"unknown {kind} {value!r}; known {kind}s: {', '.join(classes)}{close}")
    required = [field.name for field in dataclasses.fields(cls) if not _has_default(field)]
    if required:
        raise SheetbendError(
            f"{kind} {value!r} needs {', '.join(required)}; give class_path: {cls.__module__.split('.')[0]}."
            f"{cls.__name__} with init_args"
        )
    return cls()


def _key(name: str) -> str:
    """Return the name in lower case without separators."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing
