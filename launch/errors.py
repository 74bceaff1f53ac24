"""Parser messages, shortened to one line."""

import re


def one_line(message: str) -> str:
    """Return the first sentence that says what is wrong, on one line."""
    return re.sub(r"\s+", " ", message).strip()
