"""Decoded pictures kept on disk, so that every later sweep reads pixels instead of decoding."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from datamodules.decoding import KEY_BYTES, DecodedImages, Images, decode, in_parallel, read_keys
from datamodules.images import ImageTransform
from datamodules.sources.image_source import ImageSource
from mergers.files import atomic_folder, atomic_write, cache_folder
from mergers.workshops import sweep

_FORMAT = "1"
_WAIT = 0.2  # seconds between looks at an entry that another process is filling


class MappedImages:
    """Pictures of one entry of the cache, mapped into memory.

    Args:
        folder: the entry.
        lock: an open file that is locked for as long as the entry is in use, and closed then.
    """

    def __init__(self, folder: Path, lock: Any = None):
        self.folder = folder
        self._pixels = open_memmap(folder / "pixels.npy", mode="r")
        if lock is not None:
            weakref.finalize(self, lock.close)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all pictures, (N, 3, S, S)."""
        return self._pixels.shape

    @property
    def dtype(self) -> np.dtype:
        """What the pixels are, uint8."""
        return self._pixels.dtype

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return uint8 (B, 3, S, S)."""
        return torch.from_numpy(self._pixels[np.asarray(rows)])

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are not forked map the file themselves; the lock stays with the first process.
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])


class SourceImages:
    """The pictures of a source: their keys at once, their pixels when they are needed.

    Args:
        cache: keeps both.
        source: the pictures.
        transform: what is done to each.
        owner: what messages call the source's user: its task and split.
    """

    def __init__(self, cache: "ImageCache", source: ImageSource, transform: ImageTransform, owner: str):
        self.cache, self.transform, self.owner = cache, transform, owner
        self._source: ImageSource | None = source
        self._images: Images | None = None
        self.keys = cache.keys(source, owner)

    def prepare(self) -> Images:
        """Return the pictures; the first time all are decoded, unless they are in the cache or do not fit into it.

        To be called before worker processes are started, which would wait for each other.
        """
        if self._images is None:
            self._images = self.cache.pixels(self._source, self.transform, self.owner)
            self._source = None  # what it holds in memory is not needed any more
        return self._images

    def take(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return uint8 (B, 3, S, S)."""
        return self.prepare().take(rows)


class CacheEntry(NamedTuple):
    """One folder of the cache; ``used`` is when it was written or last opened, in seconds since the epoch."""

    path: Path
    size: int
    used: float


@dataclass
class ImageCache:
    """Decoded pictures on disk, one folder for each (source, transform), shared by all runs of a machine.

    Keys of pictures are kept beside them, one small file a source.

    An entry appears whole, by a rename, or not at all. While a process uses an entry or fills one it holds a lock, so
    that no other removes or fills it too. Where the folder cannot be written, pictures are decoded as without a cache,
    and one warning says so.

    Attributes:
        max_bytes: entries that were not used for longest are removed above this size; 0: no cache.
        folder: where the entries are; ``images`` in `cache_folder` by default.
        quiet: show no progress.
    """

    max_bytes: int
    folder: Path = field(default_factory=lambda: cache_folder("images"))
    quiet: bool = False

    def open(self, source: ImageSource, transform: ImageTransform, owner: str) -> SourceImages:
        """Return the pictures of ``source``; decodes none of them yet.

        Args:
            source: the pictures.
            transform: what is done to each.
            owner: what messages call the source's user: its task and split.

        Raises:
            SheetbendError: a file is no picture.
        """
        return SourceImages(self, source, transform, owner)

    def keys(self, source: ImageSource, owner: str) -> np.ndarray:
        """Return the key of each picture, uint8 (N, 32); all are read, if that was not done before.

        Raises:
            SheetbendError: a file is no picture.
        """
        sweep(self.folder / "keys")
        path = self.folder / "keys" / f"{_hash_of(source.stamp, len(source))}.npy"
        with contextlib.suppress(Exception):  # absent, damaged, or somebody else's: it is only a cache
            found = open_memmap(path, mode="r")  # whatever size its header claims
            if found.shape == (len(source), KEY_BYTES) and found.dtype == np.uint8:
                return np.array(found)

        found = read_keys(source, owner, self.quiet)
        source.release()
        if self.max_bytes:
            try:
                with atomic_write(path) as temporary:
                    np.save(temporary, found)
            except OSError as error:
                self._say_why_not(error)
        return found

    def pixels(self, source: ImageSource, transform: ImageTransform, owner: str) -> Images:
        """Return the pictures of ``source``: out of the cache, which is filled first if need be, or decoded each time.

        Raises:
            SheetbendError: a picture cannot be decoded.
        """
        needed = len(source) * 3 * transform.size**2
        if len(source) and needed <= self.max_bytes:
            # Another version of Pillow may decode or resize to other levels.
            path = self.folder / _hash_of(_FORMAT, PIL.__version__, source.stamp, len(source), transform.key)
            try:
                found = self._open_entry(path, source, transform, owner, needed)
            except (OSError, ImportError) as error:  # no fcntl: no locks on this system
                self._say_why_not(error)
                found = None
            if found is not None:
                source.release()
                return found
        return DecodedImages(source, transform, owner)

    def _say_why_not(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        warnings.warn(f"{self.folder}: {reason}; pictures are not cached", stacklevel=3)

    def entries(self) -> list[CacheEntry]:
        """Return all entries, those not used for longest first."""
        found = [_entry(path) for path in self._folders() if not path.name.startswith(".")]
        return sorted(found, key=lambda entry: (entry.used, entry.path.name))

    def size(self) -> int:
        """Return the size of all entries in bytes, those included that are being filled."""
        return sum(_entry(path).size for path in self._folders())

    def clear(self, unused_days: float = 0.0) -> list[CacheEntry]:
        """Remove the entries that are not in use and were not for ``unused_days`` days; return them."""
        self._remove_abandoned()
        limit = time.time() - 24 * 3600 * unused_days
        for path in (self.folder / "keys").glob("*.npy"):
            if path.stat().st_mtime <= limit:
                path.unlink(missing_ok=True)
        return [entry for entry in self.entries() if entry.used <= limit and self._remove(entry.path)]

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.is_dir() and path.name != "keys"]

    def _open_entry(
        self, path: Path, source: ImageSource, transform: ImageTransform, owner: str, needed: int
    ) -> MappedImages | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        waited = False
        while True:
            lock = _locked(path, shared=True)
            found = _mapped(path, lock, (len(source), 3, transform.size, transform.size)) if lock else None
            if found is not None:
                os.utime(path)
                return found
            if lock is not None:
                lock.close()
                lock = _locked(path, shared=False)
            if lock is None:
                if not waited and not self.quiet:
                    print(f"{owner}: waiting for another process that decodes it", file=sys.stderr, flush=True)
                waited = True
                time.sleep(_WAIT)
                continue
            with lock:
                if _mapped(path, None, (len(source), 3, transform.size, transform.size)) is None:
                    if not self._make_room(path, needed):
                        return None
                    self._fill(path, source, transform, owner)

    def _make_room(self, path: Path, needed: int) -> bool:
        """Remove what was not used for longest until ``needed`` bytes fit; return whether they do.

        Args:
            path: the entry that is to be filled, whose lock this process holds.
            needed: its size.
        """
        self._remove_abandoned(path)
        excess = self.size() + needed - self.max_bytes
        free = shutil.disk_usage(self.folder).free
        excess = max(excess, needed - free)
        for entry in self.entries():
            if excess <= 0:
                break
            if self._remove(entry.path):
                excess -= entry.size
        return excess <= 0

    def _remove(self, path: Path) -> bool:
        """Remove an entry unless it is in use; return whether it is gone."""
        lock = _locked(path, shared=False)
        if lock is None:
            return False
        with lock:
            shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    def _remove_abandoned(self, own: Path | None = None) -> None:
        """Remove what killed processes left half-filled: nobody holds the lock of its entry, or it is ``own``."""
        for path in self._folders():
            if not path.name.startswith("."):
                continue
            entry = self.folder / path.name.split(".")[1]
            lock = contextlib.nullcontext() if entry == own else _locked(entry, shared=False)
            if lock is not None:
                with lock:
                    shutil.rmtree(path, ignore_errors=True)

    def _fill(self, path: Path, source: ImageSource, transform: ImageTransform, owner: str) -> None:
        """Decode all pictures into a new entry."""

        def work(row: int) -> np.ndarray:
            return decode(source, row, source.raw(row), transform, owner)

        shape = (len(source), 3, transform.size, transform.size)
        with atomic_folder(path) as temporary, (temporary / "pixels.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.flush()
            _reserve(file.fileno(), file.tell(), int(np.prod(shape)))
            for pixels in in_parallel(work, len(source), f"{owner}: decoding", self.quiet):
                file.write(pixels.data)


def _hash_of(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _entry(path: Path) -> CacheEntry:
    size, used = 0, 0.0
    with contextlib.suppress(FileNotFoundError):  # another process may remove it meanwhile
        files = [file for file in path.rglob("*") if file.is_file()]  # one that is being made stands a folder deeper
        size, used = sum(file.stat().st_size for file in files), path.stat().st_mtime
    return CacheEntry(path, size, used)


def _mapped(path: Path, lock: Any, shape: tuple[int, ...]) -> MappedImages | None:
    """Return the entry at ``path``; none if it is not there or not whole."""
    try:
        found = MappedImages(path, lock)
        return found if found.shape == shape and found.dtype == np.uint8 else None
    except Exception:  # absent, damaged, or somebody else's: it is only a cache
        return None


def _locked(path: Path, shared: bool) -> Any | None:
    """Return the open lock file of the entry at ``path``, locked; none if another holds it. Closing it unlocks."""
    import fcntl

    file = path.with_name(f"{path.name}.lock").open("ab")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except BaseException:
        file.close()
        raise
    return file


def _reserve(descriptor: int, start: int, size: int) -> None:
    """Take the space of a file at once: a disk that is too full says so now, and other processes count it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, size)
