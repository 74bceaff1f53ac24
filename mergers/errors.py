"""The one exception that means: the user can fix this."""

_LONGEST = 2000  # characters; a name in somebody else's file may have millions


class SheetbendError(ValueError):
    r"""A fault the user can fix; its message is one line that names the thing, its value and the way out.

    The command line prints the message without a traceback and exits with status 2. Raised in a worker process of
    torch's DataLoader, it is raised again with the text of the worker's traceback, of which the last line is kept.
    What a file of somebody else's brings into the message can neither break the line nor write to the terminal.

    >>> print(SheetbendError("Caught it in a worker.\nOriginal Traceback ...\nmergers.errors.SheetbendError: x is 1"))
    x is 1
    >>> print(SheetbendError("task 'a\n\x1b[2Jb' is unknown"))
    task 'a\n\x1b[2Jb' is unknown
    """

    def __init__(self, message: str = "") -> None:
        if "\nOriginal Traceback" in message:
            last = message.strip().splitlines()[-1]
            message = last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: ")
        super().__init__(_one_line(message))


def _one_line(message: str) -> str:
    """Return a message with escapes for what is not to be printed, and its middle left out if it has no end."""
    if not message.isprintable():
        message = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in message)
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word closest to ``word``, or an empty string.

    >>> did_you_mean("minst", ["digits", "mnist"])
    " (did you mean 'mnist'?)"
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
