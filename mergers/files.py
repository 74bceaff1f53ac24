"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` below ``$SHEETBEND_CACHE``, else below ``~/.cache/sheetbend``; it may not exist."""
    root = os.environ.get("SHEETBEND_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sheetbend"
    return Path(root).expanduser() / name


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; renamed to ``path`` when the block ends well, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the suffix, since some writers choose the format by it; it is this process's own.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends well, else vanishes.

    A folder that stood at ``path`` is replaced whole.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.old.", dir=path.parent) as retired:
                path.rename(Path(retired) / path.name)
                try:
                    temporary.rename(path)
                except BaseException:
                    (Path(retired) / path.name).rename(path)
                    raise
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
