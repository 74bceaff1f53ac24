"""Hidden folders in which files come into being, and what killed processes have left in them."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: nobody can tell whose workshop is abandoned
    fcntl = None

FULL = (errno.ENOSPC, errno.EDQUOT)
RETIRED = ".retired"  # of a workshop: where the folder that is replaced stands, if two cannot be exchanged
_SUFFIX = ".part"
_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.part")
_NAME_LENGTH = 80  # of what is written, in the name of its workshop; file systems end at 255 bytes
_held: set[int] = set()
_swept: set[Path] = set()


def _let_go() -> None:
    # A lock lasts until every copy of its descriptor is closed: workers that outlive a killed process would hold it.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
    _swept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """Yield a hidden folder of this process's own beside ``path``, ``.<name>.<eight signs>.part``; it is removed again.

    It is locked as long as the process lives, so that others can tell whether it is abandoned. The first workshop that
    a process opens in a folder removes those that are.
    """
    sweep(path.parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:_NAME_LENGTH]}.", suffix=_SUFFIX, dir=path.parent))
        lock = _lock(folder, wait=True)
        if lock is not None or folder.is_dir():  # a disk without locks; else somebody has just removed it
            break
    if lock is not None:
        _held.add(lock)
    try:
        yield folder
    except OSError as error:
        nameless = error.filename is None and error.errno in FULL  # of a write, which knows no names
        if nameless or (isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)):
            error.filename = str(path)  # the place that the user knows
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock in _held:
            _held.discard(lock)
            os.close(lock)


def sweep(folder: Path) -> None:
    """Remove abandoned workshops, the first time that a process asks for it in a folder."""
    if folder not in _swept:
        _swept.add(folder)
        remove_abandoned(folder)


def remove_abandoned(folder: Path, below: bool = False) -> None:
    """Remove the workshops in ``folder`` whose process is dead, and end what such a one had as good as ended.

    Args:
        folder: where to look; it need not exist, and may be one that cannot be read or written.
        below: look in all folders below it too.
    """
    walk = os.walk(folder) if below else [next(iter(os.walk(folder)), (str(folder), [], []))]
    for parent, names, _ in walk:
        for name in filter(_NAME.fullmatch, list(names)):
            names.remove(name)
            abandoned = Path(parent) / name
            lock = _lock(abandoned, wait=False)
            if lock is None:
                continue
            try:
                _end(abandoned)
            finally:
                os.close(lock)


def _end(abandoned: Path) -> None:
    """Remove a workshop; put the new folder in its place where its process had only taken the old one away."""
    with contextlib.suppress(OSError):
        for retired in (abandoned / RETIRED).iterdir():
            if not (abandoned.parent / retired.name).exists():
                (abandoned / retired.name).rename(abandoned.parent / retired.name)
    shutil.rmtree(abandoned, ignore_errors=True)


def _lock(folder: Path, wait: bool) -> int | None:
    """Return a descriptor that locks ``folder`` until it is closed.

    None if another process holds it, if it is gone, or if its disk knows no locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
