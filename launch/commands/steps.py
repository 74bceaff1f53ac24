"""Steps of a merge by name: what there is, read from the sources without importing them, and how they are made."""

import ast
import difflib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from launch.commands.words import NONE, Layer, Step
from launch.errors import one_line

#: Option to the package of its classes, and the name of their base class.
PACKAGES = {
    "space": ("mergers.spaces", "Space"),
    "method": ("mergers.methods", "Method"),
    "transforms": ("mergers.transforms", "Transform"),
    "finish": ("mergers.finishes", "Finish"),
}


@dataclass(frozen=True)
class Declared:
    """A class as its source declares it.

    Attributes:
        name: Of the class.
        summary: First line of its docstring.
        fields: Name to the source of the default, None without one.
    """

    name: str
    summary: str
    fields: Mapping[str, str | None]


def declared(option: str) -> list[Declared]:
    """Return the classes for an option, in the order of their package, without importing torch.

    The help must be there at once, while importing torch takes seconds.
    """
    folder = Path(find_spec("mergers").origin).parent / PACKAGES[option][0].rpartition(".")[2]
    listed: list[str] = []
    found: dict[str, Declared] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _declaration(node)
            elif path.name == "__init__.py" and isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                listed = ast.literal_eval(node.value)
    return [found[name] for name in listed if name in found]


def _declaration(node: ast.ClassDef) -> Declared:
    annotated = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    own = {
        statement.target.id: ast.unparse(statement.value) if statement.value else None
        for statement in annotated
        if "ClassVar" not in ast.unparse(statement.annotation)
    }
    return Declared(node.name, (ast.get_docstring(node) or "").partition("\n")[0], own)


def help_of_steps() -> str:
    """Return what can be named for each option, with fields and their defaults, as wide as the terminal."""
    width = shutil.get_terminal_size().columns - 2
    lines = []
    for option in PACKAGES:
        lines.append(f"--{option}: with the fields that --{option}.FIELD sets")
        for entry in declared(option):
            given = ", ".join(name if value is None else f"{name}={value}" for name, value in entry.fields.items())
            lines += textwrap.wrap(f"{entry.name}({given})", width, initial_indent="  ", subsequent_indent="    ")
            lines += textwrap.wrap(entry.summary, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)


def field_names() -> Iterator[str]:
    """Yield all options that set a field, such as ``method.density``."""
    for option in PACKAGES:
        for entry in declared(option):
            yield from (f"{option}.{name}" for name in entry.fields)


def build_merger(layer: Layer, coefficients: Any) -> Any:
    """Return the `mergers.Merger` that the steps describe.

    Raises:
        SheetbendError: An unknown name, field or value; the line has the option as the user writes it.
    """
    from mergers import Merger

    parts = {option: _built(option, step) for option, step in layer.steps.items() if _is_named(option, step)}
    transforms = [_built("transforms", step) for step in layer.transforms or []]
    return Merger(**parts, transforms=transforms, coefficients=coefficients)


def _is_named(option: str, step: Step) -> bool:
    """Return whether the step is there; fields alone belong to the default of their option."""
    if step.name == NONE and option == "finish":
        return False
    if step.name is None and option == "finish":
        _refuse(f"--finish.{next(iter(step.fields))} belongs to no finish; name one with --finish")
    return True


def _built(option: str, step: Step) -> Any:
    """Return an instance with the given fields."""
    from mergers import Merger

    cls = _class(option, step.name or {"space": Merger.space, "method": Merger.method}[option])
    if not is_dataclass(cls):
        known = {}
    else:
        known = {known_field.name: known_field for known_field in fields(cls) if known_field.init}
    for name in step.fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            guess = f" (did you mean --{option}.{close[0]}?)" if close else ""
            has = f"it has {', '.join(known)}" if known else "it has none"
            _refuse(f"--{option}.{name}: {cls.__name__} has no such field; {has}{guess}")
    lacking = [name for name, each in known.items() if name not in step.fields and not _has_default(each)]
    if lacking:
        _refuse(f"--{option} {cls.__name__} needs a {lacking[0]}; give --{option}.{lacking[0]} VALUE after it")
    return cls(**_typed(option, cls, step.fields))


def _has_default(field: Field) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _class(option: str, name: str) -> type:
    """Return a class by its name, or by the path of a user's own."""
    from mergers.registry import registered, resolve

    package, base_name = PACKAGES[option]
    base = getattr(import_module(f"{package}.base"), base_name)
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            cls = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError):
            _refuse(f"--{option} {name} cannot be imported; give one of {', '.join(registered(package, base))}")
        if not (isinstance(cls, type) and issubclass(cls, base)) or inspect.isabstract(cls):
            _refuse(f"--{option} {name} is no {base_name}; give one of {', '.join(registered(package, base))}")
        return cls
    for known, cls in registered(package, base).items():
        if _plain(known) == _plain(name):
            return cls
    resolve(name, package, base)  # raises, with what is known
    raise AssertionError(name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _typed(option: str, cls: type, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the words of fields as values of their types."""
    if not values:
        return {}
    from jsonargparse import ArgumentParser

    class FieldParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            _refuse(f"--{option}.{_reason(message)}")

    parser = FieldParser(allow_abbrev=False)
    parser.add_class_arguments(cls)
    try:
        parsed = parser.parse_args([f"--{name}={value}" for name, value in values.items()])
    except OverflowError as error:  # a number of hundreds of digits
        _refuse(f"--{option} {cls.__name__}: a field is no number that a computer holds ({error}); give another")
    parsed = parser.instantiate_classes(parsed)
    return {name: getattr(parsed, name) for name in values}


def _reason(message: str) -> str:
    """Return what jsonargparse says of one field, such as ``density: expected float, not 'many'``."""
    match = re.match(r'Parser key "(\w+)":\s*Expected a (.*?)\. Got value: (.*)', message, flags=re.S)
    if match is None:
        return one_line(message).removeprefix("--")
    kind = re.sub(r"<class '(\w+)'>|typing\.Literal\[(.*)\]", lambda found: found[1] or f"one of {found[2]}", match[2])
    return f"{match[1]}: expected {kind}, not {match[3]!r}"


def _refuse(message: str) -> NoReturn:
    from mergers.errors import SheetbendError

    raise SheetbendError(message)
