"""Whether the hub answers at all."""

import functools

from huggingface_hub import constants, get_session

# Its package waits for as long as the network does, which behind a firewall that drops packets is minutes a request.
SECONDS = 5.0


@functools.cache
def hub_answers() -> bool:
    """Return whether the hub says anything within a few seconds; asked once a process.

    False where HF_HUB_OFFLINE is set.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # its HTTP client changes with its version, and so do its exceptions
        return False
    return True
