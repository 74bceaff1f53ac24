"""Reading pictures: decoding them, telling them apart, on all cores, with errors that name the picture."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from datamodules.images import ImageTransform, Raw, open_image, unread
from datamodules.sources.image_source import ImageSource
from mergers.errors import SheetbendError

KEY_BYTES = 32
_BLOCK = 512  # pictures that are decoded at once, so that memory stays bounded

Result = TypeVar("Result")


class Images(Protocol):
    """Pictures of one size by number, wherever they come from."""

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return uint8 (B, 3, S, S)."""


def key_of(raw: Raw) -> bytes:
    """Return the key of a picture: sha256 of its bytes as they stand in the source.

    The bytes, not the pixels: no decoding is needed, and another version of a JPEG decoder leaves the keys, and
    with them the fingerprints of splits, as they were. A picture that was encoded twice has two keys.
    """
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).digest()
    return hashlib.sha256(repr(raw.shape).encode() + raw.tobytes()).digest()


def decode(source: ImageSource, row: int, raw: Raw, transform: ImageTransform, owner: str) -> np.ndarray:
    """Return picture number ``row``, uint8 (3, S, S).

    Raises:
        SheetbendError: it cannot be decoded.
    """
    with _readable(source, row, owner):
        return transform(open_image(raw))


@contextlib.contextmanager
def _readable(source: ImageSource, row: int, owner: str) -> Iterator[None]:
    # Pillow's plugins raise what they like for bytes that are no picture.
    try:
        yield
    except SheetbendError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.split(" <_io.BytesIO")[0]
        raise SheetbendError(
            f"{owner}: {source.where(row)} cannot be decoded as a picture ({reason}); replace the file, or take it out"
        ) from None


def read_keys(source: ImageSource, owner: str, quiet: bool = False) -> np.ndarray:
    """Return the key of each picture of ``source``, uint8 (N, 32).

    Raises:
        SheetbendError: a file is no picture.
    """

    def look_at(row: int) -> bytes:
        raw = source.raw(row)
        if isinstance(raw, bytes):
            with _readable(source, row, owner):
                unread(raw).close()  # its first bytes; reads no pixels
        return key_of(raw)

    keys = np.empty((len(source), KEY_BYTES), np.uint8)
    for row, key in enumerate(in_parallel(look_at, len(source), f"{owner}: reading", quiet)):
        keys[row] = np.frombuffer(key, np.uint8)
    return keys


class DecodedImages:
    """Pictures that are decoded whenever they are asked for.

    Args:
        source: the pictures.
        transform: what is done to each.
        owner: what messages call the source's user: its task and split.
    """

    def __init__(self, source: ImageSource, transform: ImageTransform, owner: str):
        self.source, self.transform, self.owner = source, transform, owner

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return uint8 (B, 3, S, S)."""
        numbers = [int(row) for row in rows]
        pictures = (decode(self.source, row, self.source.raw(row), self.transform, self.owner) for row in numbers)
        return torch.from_numpy(np.stack(list(pictures)))


def in_parallel(function: Callable[[int], Result], count: int, doing: str, quiet: bool) -> Iterator[Result]:
    """Yield ``function(row)`` for each row in order, on as many threads as there are cores (Pillow frees the lock)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    if not quiet and not screen.is_terminal:
        print(f"{doing} {count} pictures", file=sys.stderr, flush=True)
    hidden = quiet or not screen.is_terminal
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with (
        Progress(*columns, console=screen, transient=True, disable=hidden) as bar,
        ThreadPoolExecutor(cores) as pool,
    ):
        shown = bar.add_task(doing, total=count)
        for start in range(0, count, _BLOCK):
            yield from pool.map(function, range(start, min(start + _BLOCK, count)))
            bar.advance(shown, min(_BLOCK, count - start))
