"""What the parser complains of, in one line that names the thing and the way out."""

import difflib
import inspect
import re
from collections.abc import Iterable

# What a union of types says of each member that did not fit; the one specific reason stands among them.
GENERIC = ("Does not validate", "Expected a", "Not a valid subclass", "Type mismatch", "a class path", "a dict ")


def one_line(message: str, known: Iterable[str] = ()) -> str:
    """Shorten a message of jsonargparse.

    Args:
        message: what the parser said, often many lines.
        known: option names from which a misspelled one is guessed.

    >>> one_line("Option 'batch_sise' is not accepted", ["batch_size"])
    "unknown option 'batch_sise' (did you mean 'batch_size'?); --print_config shows all"
    """
    unknown = re.search(r"[Oo]ption '([^']+)'(?: is not accepted)?|unrecognized arguments: (\S+)", message)
    if unknown and ("accept" in message or "unrecognized" in message):
        word = (unknown[1] or unknown[2]).lstrip("-").split("=")[0]
        close = difflib.get_close_matches(word.rpartition(".")[2], sorted(set(known)), n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        return f"unknown option {word!r}{guess}; --print_config shows all"
    key = re.search(r'Parser key "([^"]+)"', message)
    prefix = f"{key[1]}: " if key else ""
    # "Problem with given class_path ...:" has its reason on the next line.
    lines = [line.strip() for line in re.sub(r":\s*\n\s*(?=\w)", ": ", message).splitlines()]
    reasons = [line[2:] for line in lines if line.startswith("- ")]
    specific = [reason for reason in reasons if not reason.startswith(GENERIC)]
    if specific:
        return prefix + specific[0]
    types = [match[1] for reason in reasons if (match := re.match(r"Expected a <class '(\w+)'>", reason))]
    value = re.search(r"Given value: (.*)", message)
    if value and types:
        wanted = " or ".join("null" if name == "NoneType" else name for name in types)
        return f"{prefix}expected {wanted}, not {value[1]!r}"
    if message.startswith("Unexpected config"):
        return "the configuration is no mapping of settings; see configs/quickstart.yaml"
    required = re.search(r"the following arguments are required: (.*)", message)
    if required:
        return f"{required[1]} missing or null; give it, or a configuration that has it: --config FILE"
    return re.sub(r"\s+", " ", message.removeprefix("error:")).strip()


def option_names(classes: Iterable[type]) -> set[str]:
    """Return the names of all arguments of ``classes``, and of those derived from them."""
    names: set[str] = set()
    for cls in classes:
        names.update(inspect.signature(cls.__init__).parameters)
        names |= option_names(cls.__subclasses__())
    return names - {"self", "args", "kwargs"}
