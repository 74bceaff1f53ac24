"""The one exception that means: the user can fix this."""


class SheetbendError(ValueError):
    """A fault the user can fix; its message is one line that names the thing, its value and the way out.

    The command line prints the message without a traceback and exits with status 2.
    """


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word closest to ``word``, or an empty string.

    >>> did_you_mean("minst", ["digits", "mnist"])
    " (did you mean 'mnist'?)"
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
