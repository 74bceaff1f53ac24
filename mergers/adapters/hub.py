"""Files from the Hugging Face hub, by way of its own package and cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from mergers.adapters.files import one_line
from mergers.errors import SheetbendError

_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def is_hub_id(source: str | Path) -> bool:
    """Return whether ``source`` reads as ``org/name`` or ``org/name@revision``, and as no path on this machine.

    A folder called ``org`` in the working directory makes it a path, so that a mistyped folder is no download.
    """
    if isinstance(source, Path) or Path(source).exists():
        return False
    match = _ID.fullmatch(source)
    return match is not None and not Path(source.split("/")[0]).exists()


def repository_name(source: str) -> str:
    """Return the last part of ``org/name`` or ``org/name@revision``: ``name``."""
    return source.partition("@")[0].rpartition("/")[2]


def fetch(source: str, patterns: Sequence[str]) -> Path:
    """Return the local folder with the files of a hub repository, downloaded if they are not there yet.

    Args:
        source: ``org/name`` or ``org/name@revision``.
        patterns: Names of the files, with ``*``; all others are left on the hub.

    Raises:
        SheetbendError: The package is missing, or the files cannot be had; the message says why.
    """
    match = _ID.fullmatch(source)
    if match is None:
        raise SheetbendError(f"{source} is no hub id; give org/name or org/name@revision")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise SheetbendError(
            f"{source} is no local folder, and reading it from the hub needs a package; pip install huggingface_hub, "
            "or give a folder"
        ) from None
    try:
        folder = snapshot_download(match["repository"], revision=match["revision"], allow_patterns=list(patterns))
    except errors.GatedRepoError:
        problem = "asks for consent; accept its terms on the hub, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = "is not on the hub, or is private; check the name, or log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {match['revision']!r} on the hub; check the name after @"
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        problem = (
            "is neither a local folder nor in the hub's cache, and the hub is switched off; unset HF_HUB_OFFLINE, or "
            "give a folder"
            if isinstance(cause, errors.OfflineModeIsEnabled)
            else "is neither a local folder nor in the hub's cache, and the hub cannot be reached; check the "
            "connection, or give a folder"
        )
    except Exception as error:  # its HTTP client changes with its version, and so do its exceptions
        problem = f"cannot be had from the hub ({type(error).__name__}: {one_line(error)}); try again, or give a folder"
    else:
        return Path(folder)
    raise SheetbendError(f"{source} {problem}")
