"""Reading files that others wrote: faults are one line, and nothing in a file is ever run."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergers.adapters.pickled import reason_to_refuse
from mergers.errors import SheetbendError

_LFS = b"version https://git-lfs"


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` as a short single line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is read into one line that names it."""
    try:
        yield
    except (PermissionError, FileNotFoundError) as error:
        # safetensors says of a file it may not open that there is none.
        if isinstance(error, PermissionError) or path.exists():
            raise SheetbendError(f"{path} may not be read; give yourself the permission (chmod u+r)") from None
        raise SheetbendError(f"{path} does not exist; give the path of a file that does") from None
    except OSError as error:
        if path.is_dir():
            raise SheetbendError(f"{path} is a folder where a file should be; save the adapter again") from None
        raise SheetbendError(f"{path} cannot be read ({error.strerror or one_line(error)}); check the disk") from None
    except SafetensorError as error:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise SheetbendError(f"{path} is a git-lfs pointer, not the file itself; run git lfs pull") from None
        raise SheetbendError(f"{path} is no safetensors file ({one_line(error)}); save or download it again") from None


def is_file(path: Path) -> bool:
    """Return whether ``path`` is a file; raise if that cannot be seen, or if it is a folder.

    Raises:
        SheetbendError: No permission to look, or a folder stands there.
    """
    with reading(path):
        if path.is_dir():
            raise IsADirectoryError(path)
        return path.is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``."""
    with reading(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise SheetbendError(f"{path} is not JSON ({one_line(error)}); save or download it again") from None
    if not isinstance(content, dict):
        raise SheetbendError(f"{path} holds no JSON object; save or download it again")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return copies of all tensors in ``path``, which what happens to the file later cannot change."""
    with reading(path), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118


def plain_tensor(tensor: Tensor, key: str, path: Path) -> Tensor:
    """Return a tensor of `read_pickle` if its values can be trusted to be there.

    Raises:
        SheetbendError: It is sparse, quantised or without values, or claims more entries than the file holds.
    """
    plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise SheetbendError(f"{path}: {key[:200]!r} is no plain tensor; save it dense and contiguous")
    return tensor.detach()


def own_copy(tensor: Tensor, key: str, path: Path) -> Tensor:
    """Return a copy of a tensor of `read_pickle`, which no longer depends on the file; see `plain_tensor`."""
    return plain_tensor(tensor, key, path).clone()


_ANEW = (
    "save the state dict where it was made, torch.save(model.state_dict(), path), or as safetensors (of Task "
    "Arithmetic's pickled models the hub has tanganke/clip-vit-*)"
)


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file that ``torch.save`` wrote; only tensors and plain values are accepted.

    The file is mapped into memory where its format allows it, so that tensors nobody looks at are not read; those to
    keep are to be cloned.
    """
    with reading(path):
        if reason := reason_to_refuse(path):
            raise SheetbendError(f"{path} is not read, since {reason}; {_ANEW}")
        try:
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # a file from before torch 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # what a damaged pickle raises is anyone's guess
            raise SheetbendError(
                f"{path} holds more than tensors, or is damaged ({type(error).__name__}); nothing in it is run: {_ANEW}"
            ) from None
    if not isinstance(content, dict):
        raise SheetbendError(
            f"{path} holds a {type(content).__name__}, not a map from names to tensors; save model.state_dict()"
        )
    return content
