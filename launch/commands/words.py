"""Words of a command line: options in either spelling, steps of a merge with their fields, and the same as YAML."""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from launch import cli

#: Options that take a class of `mergers` by its name, and its fields as ``--option.field value``.
STEPS = ("space", "method", "transforms", "finish")
NONE = "none"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; options that are not given stay out of the result.

    Options may be spelled with hyphens or underscores, and are not abbreviated.
    """

    def __init__(self, command: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"{cli.PROGRAM} {command}",
            usage=f"{cli.PROGRAM} {command} {usage}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # argparse takes -1e-3 for an option, other than -0.001.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|-(inf|nan)$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        expected = re.fullmatch(r"argument ([^:]+): expected (?:at least )?one argument", message)
        invalid = re.fullmatch(r"argument ([^:]+): invalid (\w+) value: (.*)", message, flags=re.S)
        choice = re.fullmatch(r"argument ([^:]+): invalid choice: '(.*)' \(choose from (.*)\)", message, flags=re.S)
        if missing:
            message = f"{missing[1]} missing; see {self.prog} --help"
        elif expected:
            message = f"{_name(expected[1])} has no value; see {self.prog} --help"
        elif choice:
            known = re.sub(r"'", "", choice[3])
            close = difflib.get_close_matches(choice[2], known.split(", "), n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            message = f"{_name(choice[1])}: {choice[2]!r} is none of {known}{guess}"
        elif invalid:
            message = f"{_name(invalid[1])}: expected {invalid[2].replace('_', ' ')}, not {invalid[3]}"
        cli.fail(" ".join(message.removeprefix("argument ").split()))

    def read(self, words: Sequence[str], fields: Iterable[str] = ()) -> argparse.Namespace:
        """Return the options among ``words``.

        Args:
            words: Of the command line.
            fields: Further names that a misspelled option may have meant, such as ``method.density``.
        """
        known, unknown = self.parse_known_args([spelled(word) for word in words])
        if unknown:
            options = [option for option in self._option_string_actions if option.startswith("--")]
            options += [f"--{name}" for name in fields]
            wrong = next((word for word in unknown if word.startswith("-")), None)
            if wrong is None:
                cli.fail(f"{unknown[0]!r} belongs to no option; see {self.prog} --help")
            wrong = wrong.partition("=")[0]
            close = difflib.get_close_matches(wrong, options, n=1)
            guess = f" (did you mean {close[0]}?)" if close else ""
            cli.fail(f"unknown option {wrong}{guess}; {self.prog} --help shows all")
        return known


def flag(options: Any, name: str, what: str) -> None:
    """Add an option to a parser or group that is on when given, and may also be said to be ``true`` or ``false``."""
    options.add_argument(f"--{name}", nargs="?", const=True, type=true_or_false, metavar="true|false", help=what)


def _name(argument: str) -> str:
    """Return the long spelling of an option that argparse calls ``-c/--config``."""
    return argument.rpartition("/")[2]


def true_or_false(word: str) -> bool:
    """Return the truth value that a word stands for."""
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]
    except KeyError:
        raise ValueError(word) from None


def whole_number(word: str) -> int:
    """Return a whole number."""
    return int(word)


def spelled(word: str) -> str:
    """Return an option in the spelling that the parser knows.

    >>> spelled("--dry_run"), spelled("--method.sign_by=x"), spelled("a_b")
    ('--dry-run', '--method.sign_by=x', 'a_b')
    """
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    head, dot, rest = option.partition(".")
    return head.replace("_", "-") + dot + rest + equals + value


@dataclass(frozen=True)
class Step:
    """A space, method, transform or finish as the user named it.

    Attributes:
        name: Of the class; None where only fields were given, which then belong to what an earlier layer named.
        fields: Their values, as words.
    """

    name: str | None
    fields: Mapping[str, str] = field(default_factory=dict)

    def over(self, earlier: "Step | None") -> "Step":
        """Return this step with the fields of an earlier one of the same name that are not given anew."""
        if earlier is None or self.name == NONE:
            return self
        if self.name is None or _key(self.name) == _key(earlier.name or ""):
            return Step(earlier.name, {**earlier.fields, **self.fields})
        return self


def _key(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.rpartition(".")[2].lower())


@dataclass
class Layer:
    """Words from one source: a preset, a file, or the command line.

    Attributes:
        steps: Space, method and finish by option.
        transforms: In their order; None where none were named.
        rest: The words of all other options.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    transforms: list[Step] | None = None
    rest: list[str] = field(default_factory=list)


def split_steps(words: Sequence[str]) -> Layer:
    """Take the steps and their fields out of ``words``.

    >>> layer = split_steps(["--method", "ties", "--method.density", ".3", "--rank", "4"])
    >>> layer.steps["method"], layer.rest
    (Step(name='ties', fields={'density': '.3'}), ['--rank', '4'])
    """
    layer = Layer()
    words = [spelled(word) for word in words]
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        match = re.fullmatch(rf"--({'|'.join(STEPS)})(?:\.(.+))?", option)
        position += 1
        if match is None:
            layer.rest.append(words[position - 1])
            continue
        values = [value] if equals else []
        several = match[1] == "transforms" and not match[2]
        while not equals and position < len(words) and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
            if not several:
                break
        if not values or "" in values:
            cli.fail(f"{option} has no value; see {cli.PROGRAM} merge --help")
        if several:
            layer.transforms = (layer.transforms or []) + [Step(name) for name in values]
        elif match[1] == "transforms":
            _set_transform_field(layer, match[2], values[0])
        elif match[2]:
            step = layer.steps.get(match[1], Step(None))
            layer.steps[match[1]] = Step(step.name, {**step.fields, _field(match[2]): values[0]})
        else:
            step = layer.steps.get(match[1], Step(None))
            layer.steps[match[1]] = Step(values[0], step.fields)
    return layer


def _field(name: str) -> str:
    return name.replace("-", "_")


def _set_transform_field(layer: Layer, name: str, value: str) -> None:
    """Give a field to the transform that was named last."""
    layer.transforms = layer.transforms or [Step(None)]
    last = layer.transforms[-1]
    layer.transforms[-1] = Step(last.name, {**last.fields, _field(name): value})


def stacked(layers: Sequence[Layer]) -> Layer:
    """Return the layers as one, later ones before earlier ones. Of the rest, the parser takes the last of each."""
    result = Layer()
    for layer in layers:
        for option, step in layer.steps.items():
            result.steps[option] = step.over(result.steps.get(option))
        if layer.transforms is not None:
            result.transforms = _over(layer.transforms, result.transforms or [])
        result.rest += layer.rest
    return result


def _over(transforms: Sequence[Step], earlier: Sequence[Step]) -> list[Step]:
    """Return the transforms; fields without a name go to the only transform there is."""
    if [_key(step.name or "") for step in transforms] == [NONE]:
        return []
    if len(transforms) == 1 and transforms[0].name is None:
        if len(earlier) != 1:
            problem = f"there are {len(earlier)}; name all with --transforms" if earlier else "there is none"
            option = next(iter(transforms[0].fields))
            cli.fail(f"--transforms.{option} belongs to no transform: {problem}")
        return [transforms[0].over(earlier[0])]
    if len(transforms) == len(earlier):
        return [step.over(before) for step, before in zip(transforms, earlier, strict=True)]
    return list(transforms)


def file_words(path: str) -> list[str]:
    """Return the settings of a YAML file as the words that would say the same."""
    import yaml

    from launch.yaml_text import load_yaml

    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        cli.fail(f"--config {path} does not exist; give a YAML file")
    except RecursionError:
        cli.fail(f"--config {path} is nested too deeply; give a mapping of settings, such as `space: knots`")
    except (OSError, ValueError, yaml.YAMLError) as error:  # a ValueError of what is not UTF-8, or of no such date
        cli.fail(f"--config {path} cannot be read as YAML ({' '.join(str(error).split())})")
    if not isinstance(content, dict):
        cli.fail(f"--config {path} is no mapping of settings, such as `space: knots`")
    try:
        return as_words({str(key): value for key, value in content.items()})
    except (ValueError, RecursionError):
        cli.fail(f"--config {path} has a setting that holds itself; write it out")


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words.

    >>> as_words({"rank": 4, "method": {"class_path": "mergers.Ties", "init_args": {"density": 0.3}}})
    ['--rank=4', '--method', 'mergers.Ties', '--method.density=0.3']
    """
    words: list[str] = []
    for key, value in settings.items():
        option = spelled(f"--{key}")
        if value is None:
            continue
        if key in STEPS:
            for step in value if isinstance(value, list) else [value]:
                words += _step_words(option, step)
        elif isinstance(value, Mapping):
            words += [option, *(f"{name}={_word(inner)}" for name, inner in value.items())]
        elif isinstance(value, list):
            words += [option, *map(_word, value)]
        else:
            words.append(f"{option}={_word(value)}")
    return words


def _step_words(option: str, step: Any) -> list[str]:
    if not isinstance(step, Mapping):
        return [option, _word(step)]
    if not isinstance(step.get("class_path"), str) or not isinstance(step.get("init_args") or {}, Mapping):
        cli.fail(f"{option.lstrip('-')} is {dict(step)!r}; give a name, or class_path and init_args")
    fields = step.get("init_args") or {}
    given = [f"{option}.{name}={_word(value)}" for name, value in fields.items() if value is not None]
    return [option, step["class_path"], *given]


def _word(value: Any) -> str:
    """Return a YAML value as one word."""
    plain = value is None or isinstance(value, bool | int | float | list | Mapping)
    return json.dumps(value, default=str) if plain else str(value)
