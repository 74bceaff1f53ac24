"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, TensorSpec, serialize_file
from torch import Tensor

from mergers.errors import SheetbendError


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` below ``$SHEETBEND_CACHE``, else ``$XDG_CACHE_HOME/sheetbend``; it may not exist.

    Where neither is set, it is below ``~/.cache/sheetbend``.

    Raises:
        SheetbendError: There is no home folder either.
    """
    root = os.environ.get("SHEETBEND_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sheetbend"
    try:
        return Path(root).expanduser() / name
    except RuntimeError:
        raise SheetbendError("there is no home folder for the cache; set SHEETBEND_CACHE to a folder") from None


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; renamed to ``path`` when the block ends well, else removed.

    A link stays, and what it points to is replaced. A device or a pipe, such as ``/dev/stdout``, is written to.
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

    A folder that stood at ``path`` is replaced whole; a link stays, and the folder it points to is replaced.
    """
    path = Path(path).resolve()
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
    try:
        serialize_file(specs, str(path), dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        full = "No space left" in str(error) or "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, _reason(error), str(path)) from None
    Path(path).chmod(0o644)  # safetensors leaves it to the owner alone


def _reason(error: SafetensorError) -> str:
    """Return why a file cannot be written, without what safetensors puts around it."""
    text = " ".join(str(error).split())
    return os.strerror(errno.ENOSPC) if "os error 28" in text else f"cannot be written ({text})"
