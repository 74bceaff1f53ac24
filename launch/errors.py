"""What the parser complains of, in one line that names the thing and the way out."""

import difflib
import inspect
import re
from argparse import Namespace
from collections.abc import Iterable
from typing import Any

# What a union of types says of each member that did not fit; the one specific reason stands among them.
GENERIC = ("Does not validate", "Expected a", "Not a valid subclass", "Type mismatch", "a class path", "a dict ")

# What the parser calls a type: a class, one of several values, or a class of ours in a mapping.
KIND = r"(?:<class '(\w+)'>|typing\.Literal\[(.*?)\]|(dot import path))"
NAMES = {"NoneType": "null"}


def one_line(message: str, known: Iterable[str] = (), place: str = "", lacking: Iterable[str] = ()) -> str:
    """Shorten a message of jsonargparse.

    Args:
        message: what the parser said, often many lines.
        known: option names from which a misspelled one is guessed.
        place: where in the configuration the parser read, such as ``data.tables.mood``.
        lacking: those of ``known`` that are required and not given, which a misspelled one is sooner.

    >>> one_line("Option 'tekst' is not accepted", ["text", "label"], "data.tables.mood")
    "data.tables.mood: unknown option 'tekst' (did you mean 'text'?); --print_config shows all"
    """
    unknown = re.search(r"[Oo]ption '([^']+)'(?: is not accepted)?|unrecognized arguments: (\S+)", message)
    if unknown and ("accept" in message or "unrecognized" in message):
        word = (unknown[1] or unknown[2]).lstrip("-").split("=")[0]
        group = re.match(r"Group '([^']+)'", message)
        place = ".".join(filter(None, (place, group[1] if group else "")))
        name = f"{group[1]}.{word}" if group else word
        guess = guessed(name, lacking) or guessed(name, known)
        return f"{place}: " * bool(place) + f"unknown option {word!r}{guess}; --print_config shows all"
    key = re.search(r'Parser key "([^"]+)"', message)
    place = ".".join(filter(None, (place, key[1] if key else "")))
    prefix = f"{place}: " if place else ""
    # "Problem with given class_path ...:" has its reason on the next line.
    lines = [line.strip() for line in re.sub(r":\s*\n\s*(?=\w)", ": ", message).splitlines()]
    reasons = [line[2:] for line in lines if line.startswith("- ")]
    specific = [reason for reason in reasons if not reason.startswith(GENERIC)]
    if specific:
        inner = re.search(r'Parser key "[^"]+":\s*Expected.*', specific[0])
        return one_line(inner[0], place=place) if inner else prefix + specific[0]
    types = re.findall(rf"^[\s-]*(?:Parser key .*: )?Expected a {KIND}", message, flags=re.M)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if value and any(name for name, *_ in types):
        wanted = (NAMES.get(name) or name or values.replace("'", "") or "a mapping" for name, values, _ in types)
        return f"{prefix}expected {' or '.join(wanted)}, not {value[1]!r}"
    if message.startswith("Unexpected config"):
        return "the configuration is no mapping of settings; see configs/quickstart.yaml"
    required = re.search(r"the following arguments are required: (.*)", message)
    if required:
        # Of the whole configuration the names begin with the subcommand's.
        names = re.sub(r"\b\w+\.(?=(?:data|model)\b)", "", required[1])
        it = "them" if ", " in names else "it"
        return f"{prefix}{names} missing or null; give {it}, or a configuration that has {it}: --config FILE"
    absent = re.search(r"File does not exist: '(.*)'", message)
    if absent and place == "config":
        return f"--config {absent[1]} does not exist; give a configuration, such as configs/quickstart.yaml"
    choices = re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", message)
    if choices:
        known_values = choices[1].replace("'", "")
        return f"{prefix}expected one of {known_values}, not {choices[2]!r}"
    other = re.search(r"Expected (.*?)\. Got value: (.*)", message)
    if other:
        wanted = other[1].replace("a <class 'collections.abc.Mapping'>", "a mapping")
        return f"{prefix}expected {wanted}, not {other[2]}"
    number = re.search(r"invalid literal for int\(\) with base 10: '(.*)'", message)
    if number:
        return f"{prefix}expected a whole number, not {number[1]!r}"
    return re.sub(r"\s+", " ", message.removeprefix("error:")).strip()


def guessed(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option that ``word`` may have meant, or an empty string.

    Options beside it come first; of those elsewhere only one whose name is nearly the same.

    >>> guessed("trainer.max_epoch", ["trainer.max_epochs"]), guessed("max_epochs", ["trainer.max_epochs"])
    (" (did you mean 'max_epochs'?)", " (did you mean 'trainer.max_epochs'?)")
    """
    parent, _, name = word.rpartition(".")
    names = {option: option.rpartition(".") for option in sorted(set(known))}
    beside = [last for before, _, last in names.values() if before == parent]
    if close := difflib.get_close_matches(name, beside, n=1):
        return f" (did you mean {close[0]!r}?)"
    nearly = difflib.get_close_matches(name, [last for _, _, last in names.values()], n=1, cutoff=0.8)
    elsewhere = next((option for option, (_, _, last) in names.items() if last in nearly and option != word), None)
    return f" (did you mean {elsewhere!r}?)" if elsewhere else ""


def place_in(whole: Any, part: Any) -> str | None:
    """Return the keys under which ``part`` stands in a configuration, as they are written; none if it does not.

    >>> place_in({"tables": {"mood": {"tekst": "a"}}, "seed": 0}, {"tekst": "a"})
    'tables.mood'
    """
    whole, part = plain(whole), plain(part)
    if whole == part:
        return ""
    entries = whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ()
    for key, value in entries:
        if (inside := place_in(value, part)) is not None:
            return ".".join(filter(None, ("" if key == "init_args" else str(key), inside)))
    return None


def plain(value: Any) -> Any:
    """Return a value of the parser with maps in the place of its namespaces."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def option_names(classes: Iterable[type]) -> set[str]:
    """Return the names of all arguments of ``classes``, and of those derived from them."""
    names: set[str] = set()
    for cls in classes:
        names.update(inspect.signature(cls.__init__).parameters)
        names |= option_names(cls.__subclasses__())
    return names - {"self", "args", "kwargs"}
