"""Files and folders that appear whole or not at all."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, TensorSpec, serialize_file
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.workshops import RETIRED, sweep, workshop

# Of renameat2 and renamex_np: paths are relative to the working folder, and two are exchanged.
_HERE, _SWAP = -100, 2


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` below ``$SHEETBEND_CACHE``, else ``$XDG_CACHE_HOME/sheetbend``; it may not exist.

    Where neither is set, it is below ``~/.cache/sheetbend``. What killed processes have left half-written in it is
    removed.

    Raises:
        SheetbendError: There is no home folder either.
    """
    root = os.environ.get("SHEETBEND_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sheetbend"
    try:
        folder = Path(root).expanduser() / name
    except RuntimeError:
        raise SheetbendError("there is no home folder for the cache; set SHEETBEND_CACHE to a folder") from None
    sweep(folder)
    return folder


@contextlib.contextmanager
def atomic_write(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to ``path`` when the block ends well, else removed.

    Whatever ends the process, ``path`` holds the old content or the new one, whole: SIGKILL at any moment, and, as the
    content is on the disk before it gets its name, a power cut. What a killed process has left beside it is removed by
    the next that writes there. A link stays, and what it points to is replaced. A device or a pipe, such as
    ``/dev/stdout``, is written to.

    Args:
        path: the file; its folder is made.
        flush: wait until the content is on the disk, which takes half a millisecond, and for large files as long as
            the disk takes. What is checked when it is read can do without.
    """
    path = Path(path)
    if path.exists() and (not path.is_file() or path.parent in (Path("/dev"), Path("/dev/fd"))):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            with (Path(folder) / path.name).open("rb") as written, path.open("ab") as device:
                shutil.copyfileobj(written, device)
        return
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    with workshop(path) as folder:
        temporary = folder / path.name  # some writers choose the format by the suffix
        temporary.touch()
        yield temporary
        if flush:
            _flush(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` when the block ends well, else vanishes.

    A folder that stood at ``path`` is replaced whole; a link stays, and the folder it points to is replaced. The
    guarantees are those of `atomic_write`. Where the system cannot exchange two folders (Linux and macOS can, on most
    disks), a process that is killed between two renames leaves nothing at ``path`` until the next writes there, which
    puts the new folder there.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with workshop(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            retired = folder / RETIRED / path.name
            retired.parent.mkdir()
            path.rename(retired)
            try:
                temporary.rename(path)
            except BaseException:
                retired.rename(path)
                raise


def _flush(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with file.open("rb") as content:
        try:
            os.fsync(content.fileno())
        except OSError as error:
            if error.errno == errno.EINVAL:  # a disk that has nothing to wait for
                return
            raise OSError(error.errno, error.strerror, str(file)) from None


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders of one disk trade their names at once; return whether that could be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return libc.renamex_np(os.fsencode(one), os.fsencode(other), _SWAP) == 0
        return libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _SWAP) == 0
    except (OSError, AttributeError, TypeError):  # an older or another system
        return False


def write_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file that others may read too; ``safetensors.torch`` would need numpy for it.

    Args:
        tensors: Any device and layout; two that share memory are written twice.
        path: The file.
        metadata: Kept in the header, ``{"format": "pt"}`` by default.

    Raises:
        OSError: It cannot be written; it carries the path.
    """
    held = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.data_ptr(),
            data_len=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in held.items()
    }
    Path(path).touch()
    mode = stat.S_IMODE(Path(path).stat().st_mode)  # as the umask has it; safetensors leaves it to the owner alone
    try:
        serialize_file(specs, str(path), dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, _reason(error), str(path)) from None
    Path(path).chmod(mode)


def _reason(error: SafetensorError) -> str:
    """Return why a file cannot be written, without what safetensors puts around it."""
    text = " ".join(str(error).split())
    return os.strerror(errno.ENOSPC) if "os error 28" in text else f"cannot be written ({text})"
