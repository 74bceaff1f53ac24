"""The parser of configurations: it knows where in one a fault is, and shows the fields of what a task declares."""

import argparse
import functools
import inspect
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, ClassVar, NoReturn

import jsonargparse._loaders_dumpers
import jsonargparse._typehints
from docstring_parser import DocstringStyle
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

import datamodules
from launch import cli
from launch.analysing.settings import Analysis
from launch.errors import one_line, option_names, place_in, plain
from launch.searching.settings import Search
from launch.yaml_text import Bounded
from lightning_modules import Adaptation, LoRATasks

# By default every docstring is parsed in four styles, at each of hundreds of parsers that one configuration takes.
set_parsing_settings(docstring_parse_style=DocstringStyle.GOOGLE)


def _as_it_stands(value: Any, *_: Any) -> Any:
    """Return a value of an argument without a type: a mapping with a class_path is a mapping."""
    return value


# jsonargparse calls whatever a class_path names where a value may be anything (os.system, say), before anybody can
# look at it. There is no option against that, so that its own function is replaced; tests/launch/test_config_parser.py
# notices when another version goes another way.
if not callable(jsonargparse._typehints.adapt_classes_any):
    raise ImportError("this version of jsonargparse is not known to be safe")
jsonargparse._typehints.adapt_classes_any = _as_it_stands


class _Loader(Bounded, jsonargparse._loaders_dumpers.get_yaml_default_loader()):
    """The parser's own loader of YAML, which refuses documents without end."""


jsonargparse._loaders_dumpers.yaml_default_loader = _Loader

# Where in a configuration a class of ours stands.
PLACES = {
    LightningModule: "model",
    LightningDataModule: "data",
    Callback: "trainer.callbacks",
    Adaptation: "adaptation",
    Search: "search",
    Analysis: "analysis",
}
# What those can be given whose class is not known where the option stands.
OF_CLASSES = {f"model.{name}" for name in option_names([LoRATasks])} | {
    f"data.{name}" for name in option_names([datamodules.TaskDataModule])
}


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the place, the thing and the way out."""

    # What is being read, outermost first: the class that it is for, and its part of the configuration.
    _reading: ClassVar[list[tuple[type | None, Any]]] = []

    def __init__(self, *args: Any, **kwargs: Any):
        # An option is spelled out on the command line, as it is in YAML.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._of: type | None = None

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Add the arguments of a class, and the help of those that are maps of declarations."""
        added = super().add_class_arguments(theclass, nested_key, *args, **kwargs)
        if nested_key is None:
            self._of = theclass
        for name, (container, declared) in declarations(theclass).items():
            if container is dict:  # of lists, the parser itself shows the help
                self.add_fields_help(f"{nested_key}.{name}" if nested_key else name, container, declared)
        return added

    def add_function_arguments(self, function: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a function where a class belongs: the parser would call it with what the configuration says.

        Raises:
            ImportError: Always, which the parser takes for a class_path that is none.
        """
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
        raise ImportError(f"{name} is no class; give a class_path that names one")

    def add_fields_help(self, key: str, container: type, declared: type) -> None:
        """Add an option that shows the fields of the declarations that ``key`` holds."""
        where = f"{key}.NAME" if container is dict else key
        self.add_argument(
            f"--{key}.help",
            action=FieldsHelp,
            const=(where, declared),
            help=f"Show the fields of a {declared.__name__} and exit.",
        )

    def parse_object(self, cfg_obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a part of the configuration; errors say which."""
        self._reading.append((self._of, cfg_obj))
        try:
            return super().parse_object(cfg_obj, *args, **kwargs)
        finally:
            self._reading.pop()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = {action.dest for action in parser._actions if action.option_strings} - {argparse.SUPPRESS}
        known = known if self._of else known | OF_CLASSES
        cli.fail(one_line(message, known, self._place(), self._lacking()))

    def _lacking(self) -> list[str]:
        """Return the required arguments of the class that is being read that are not given."""
        if not self._of or not self._reading:
            return []
        given, arguments = plain(self._reading[-1][1]), inspect.signature(self._of).parameters.values()
        required = [one.name for one in arguments if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
        return [name for name in required if name not in given]

    def _place(self) -> str:
        """Return which part of the configuration is being read: its keys, or the class that it is for."""
        if not self._reading:
            return ""
        (outer, whole), (inner, part) = self._reading[0], self._reading[-1]
        start = next((place for cls, place in PLACES.items() if outer is not None and issubclass(outer, cls)), None)
        keys = place_in(whole, part)
        if start is None or keys is None:
            return inner.__name__ if inner else ""
        return f"{start}.{keys}" if keys else start


class FieldsHelp(argparse.Action):
    """Shows the fields of a dataclass; ``const`` is where they stand in a configuration, and the dataclass."""

    def __init__(self, option_strings: list[str], const: tuple[str, type], help: str, **_: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the help and exit."""
        where, declared = self.const
        shown = Parser(description=f"{where} in a configuration", add_help=False, usage=argparse.SUPPRESS)
        shown.add_class_arguments(declared, where)
        for action in shown._actions:
            if action.dest == where:  # a file of all fields
                action.help = argparse.SUPPRESS
        shown.print_help()
        parser.exit()


@functools.cache
def declarations(theclass: type) -> Mapping[str, tuple[type, type]]:
    """Return the arguments of a class that are maps or lists of dataclasses: dict or list, and the dataclass."""
    found = {}
    hints = typing.get_type_hints(theclass.__init__)
    for name in [name for name in inspect.signature(theclass).parameters if name in hints]:
        for hint in (hints[name], *typing.get_args(hints[name])):
            held = typing.get_args(hint)
            if typing.get_origin(hint) in (dict, list) and is_dataclass(held[-1]):
                found[name] = typing.get_origin(hint), held[-1]
    return found


def task_declarations() -> Mapping[str, tuple[type, type]]:
    """Return the declarations that any datamodule of ours takes, by their place in a configuration."""
    classes = [getattr(datamodules, name) for name in datamodules.__all__]
    modules = [cls for cls in classes if inspect.isclass(cls) and issubclass(cls, datamodules.TaskDataModule)]
    return {f"data.{name}": held for cls in modules for name, held in declarations(cls).items()}
