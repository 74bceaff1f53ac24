"""Small disks, disks that may not be written, and files that vanish."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust.kills import Reference
from tests.trust.server import Ended, Server, note
from tests.trust.snapshots import differences, half_written
from tests.trust.works import Work, start

ROOMY = 256 * 2**20
NO_ERROR = re.compile(r"sheetbend: warning: |task \S+, [^:]+: reading \d+ pictures$")
DELETED = "deleted "  # before the names of what a test has removed


@contextlib.contextmanager
def disk(folder: Path, size: int = ROOMY) -> Iterator[None]:
    """Have ``folder`` on a disk of its own, of so many bytes."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small disk needs root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount_again(folder: Path, *options: str) -> None:
    """Change the size of a disk, or whether it may be written."""
    subprocess.run(["mount", "-o", f"remount,{','.join(options)}", str(folder)], check=True)


def used(folder: Path) -> int:
    """Return how many bytes of a disk are taken."""
    return shutil.disk_usage(folder).used


def one_line(ended: Ended) -> list[str]:
    """Return what is wrong with how a command said that it could not end."""
    errors = [line for line in ended.err.splitlines() if not NO_ERROR.match(line)]
    if ended.status == 2 and len(errors) == 1 and errors[0].startswith("sheetbend: error: "):
        return []
    return [f"it ended with {ended.status}, saying: {ended.err[-700:]}"]


def hindered(server: Server, work: Work, folder: Path) -> tuple[Ended, list[str]]:
    """Run a command that may not be able to end; return how it ended, and what is wrong."""
    ended = server.run(work.job(folder))
    faults = one_line(ended) if ended.status else []
    return ended, faults + [f"half-written: {line}" for line in half_written(folder)]


def goes_on(server: Server, work: Work, folder: Path, whole: Reference) -> list[str]:
    """Run the command again, with nothing in its way; return what is wrong."""
    ended = server.run(work.job(folder))
    faults = [f"the command given again ends with {ended.status}: {ended.err[-500:]}"] if ended.status else []
    return faults + differences(work.left(folder), whole.contents)


def reference_on_a_disk(server: Server, work: Work, base: Path) -> tuple[Reference, int, int]:
    """Run a command on a roomy disk; return what it left, and the bytes taken before and after."""
    with disk(base / "work"):
        folder = start(work, base)
        before = used(folder)
        ended = server.run(work.job(folder))
        assert ended.status == 0, ended.err
        return Reference(ended, work.left(folder)), before, used(folder)


def delete(folder: Path) -> None:
    """Remove what ``TRUST_DELETE``, a pattern, matches below a folder, and note it; in the process of a command."""
    for path in remove(folder, os.environ["TRUST_DELETE"]):
        note(f"{DELETED}{path}")


def remove(folder: Path, pattern: str) -> list[Path]:
    """Remove what a pattern matches below a folder; return what there was."""
    found = list(folder.glob(pattern))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found
