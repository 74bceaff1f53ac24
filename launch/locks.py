"""One process at a time in a folder."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mergers.errors import SheetbendError
from mergers.workshops import remove_abandoned

LOCK = ".lock"
_held: set[TextIO] = set()


def _let_go() -> None:
    # A lock lasts until every copy of its file is closed: workers that outlive a killed run would hold it.
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def alone(folder: Path, otherwise: str = "--trainer.default_root_dir") -> Iterator[None]:
    """Keep other processes from working in ``folder``, which is made, and removed again if nothing came of it.

    What killed processes have left half-written there is removed.

    Args:
        folder: what is worked in.
        otherwise: the option that names another one.

    Raises:
        SheetbendError: another process works in it.
    """
    made = list(itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, otherwise):
            remove_abandoned(folder, below=True)
            yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # something is in it
                one.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, otherwise: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    path = folder / LOCK
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SheetbendError(
                    f"another process works in {folder}; wait for it, or give another {otherwise}"
                ) from None
            except OSError:  # a disk without locks
                pass
            if not _is(file, path):  # whoever held it has removed it meanwhile
                continue
            _held.add(file)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                _held.discard(file)
            return


def _is(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
