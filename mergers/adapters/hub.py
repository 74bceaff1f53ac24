"""Files from the Hugging Face hub, by way of its own package and cache."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergers.adapters.files import one_line
from mergers.adapters.reachable import cache_only
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
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SheetbendError(
            f"{source} is no local folder, and reading it from the hub needs a package; pip install huggingface_hub, "
            "or give a folder"
        ) from None
    with hub_errors(source, match["revision"], "or give a folder", absent="download it where it can"):
        folder = snapshot_download(
            match["repository"],
            revision=match["revision"],
            allow_patterns=list(patterns),
            local_files_only=cache_only(),
        )
    return Path(folder)


@contextlib.contextmanager
def hub_errors(
    what: str,
    revision: str | None,
    way_out: str,
    absent: str = "run `sheetbend prepare` where it can",
    again: str = "try again",
) -> Iterator[None]:
    """Say in one line why something cannot be had from the hub.

    Args:
        what: what it is called, such as ``hub data set org/name``.
        revision: the one that is asked for, if any.
        way_out: what else can be done, ``or ...``.
        absent: what to do where the hub does not answer and it is not here.
        again: what to do where a transfer failed.

    Raises:
        SheetbendError: In the place of whatever the hub's package raised in the block.
    """
    try:
        yield
    except SheetbendError:
        raise
    except Exception as error:  # its HTTP client changes with its version, and so do its exceptions
        raise SheetbendError(f"{what} {_problem(error, revision, way_out, absent, again)}") from error


def _problem(error: Exception, revision: str | None, way_out: str, absent: str, again: str) -> str:
    from huggingface_hub import errors

    cause = error.__cause__
    if isinstance(error, errors.DryRunError) and isinstance(cause, errors.HfHubHTTPError):
        error = cause
    if isinstance(error, errors.GatedRepoError):
        consent = "accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN"
        return f"asks for consent; {consent}, {way_out}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not on the hub, or is private; check the name, or log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision!r} on the hub; check it, {way_out}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.DryRunError):
        off = isinstance(cause, errors.OfflineModeIsEnabled) or "HF_HUB_OFFLINE" in str(error)
        state = "the hub is switched off (HF_HUB_OFFLINE)" if off else "the hub cannot be reached"
        return f"is not on this machine, or not whole, and {state}; {absent}, {way_out}"
    return f"cannot be had from the hub ({type(error).__name__}: {one_line(error)}); {again}, {way_out}"
