"""Whether the hub answers at all, and what to do with its package where it does not."""

import contextlib
import functools
from collections.abc import Iterator

# Its package waits for as long as the network does, which behind a firewall that drops packets is minutes a request.
SECONDS = 5.0


@functools.cache
def hub_answers() -> bool:
    """Return whether the hub says anything within a few seconds; asked once a process.

    False where HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # its HTTP client changes with its version, and so do its exceptions
        return False
    return True


def cache_only() -> bool:
    """Return whether the hub is silent, so that what is here is all there is; false too where it is switched off.

    Switched off, its package knows and says so itself.
    """
    from huggingface_hub import is_offline_mode

    return not is_offline_mode() and not hub_answers()


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Ask nothing of the hub in the block: what is in its cache is read, all else is an error at once."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def asked_if_it_answers() -> Iterator[None]:
    """Let the libraries in the block ask the hub if it answers; else they read its cache without waiting for it."""
    with unasked() if cache_only() else contextlib.nullcontext():
        yield
