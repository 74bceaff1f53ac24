"""The one exception that means: the user can fix this."""


class SheetbendError(ValueError):
    r"""A fault the user can fix; its message is one line that names the thing, its value and the way out.

    The command line prints the message without a traceback and exits with status 2. Raised in a worker process of
    torch's DataLoader, it is raised again with the text of the worker's traceback, of which the last line is kept.

    >>> print(SheetbendError("Caught it in a worker.\nOriginal Traceback ...\nmergers.errors.SheetbendError: x is 1"))
    x is 1
    """

    def __init__(self, message: str = "") -> None:
        if "\nOriginal Traceback" in message:
            last = message.strip().splitlines()[-1]
            message = last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: ")
        super().__init__(message)


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word closest to ``word``, or an empty string.

    >>> did_you_mean("minst", ["digits", "mnist"])
    " (did you mean 'mnist'?)"
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
