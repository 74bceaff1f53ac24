"""Alignments kept on disk: what `Space.encode` returned, by the content of the updates it was given."""

import contextlib
import json
import math
import mmap
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.files import atomic_write, cache_folder, write_safetensors
from mergers.hashing import Digest
from mergers.spaces.base import Encoded, Space
from mergers.updates import DenseUpdate, LowRankUpdate, Update
from mergers.workshops import remove_abandoned

_FORMAT = "2"
_SUFFIX = ".safetensors"
_DATA, _ABOUT = "data", "about"
# Tensors begin at multiples of this many bytes, as torch's own do. The kernels behind a product may depend on it,
# and what is read must give the same bytes as what was written.
_ALIGNMENT = 64


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: The file.
        size: In bytes.
        used: When it was written or last read, in seconds since the epoch.
    """

    path: Path
    size: int
    used: float


@dataclass
class AlignmentCache:
    """Alignments on disk, one file a module, shared by all merges, methods and processes of a machine.

    An entry is found by the class and settings of the space and by the updates' values, so a change of either never
    meets an old one. A damaged entry is made anew. Where the folder cannot be written, alignments are computed as
    without a cache, and one warning says so.

    Attributes:
        folder: Where the files are; ``alignments`` in `cache_folder` by default.
        max_bytes: Entries that were not used for longest are removed above this size.
    """

    folder: Path = field(default_factory=lambda: cache_folder("alignments"))
    max_bytes: int = 20 * 10**9

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        if self.max_bytes < 0:
            raise SheetbendError(f"max_bytes of the cache is {self.max_bytes}; give 0 or more")
        self._lock = threading.Lock()
        self._size: int | None = None  # of all entries, as far as this process knows
        self._writable = True
        self.hits = self.misses = 0

    def encoder(self, space: Space) -> Callable[[Sequence[Update]], Encoded]:
        """Return what takes the place of ``space.encode``; that itself, if its work is not worth keeping."""
        if not space.costly:
            return space.encode
        settings = json.dumps([f"{type(space).__module__}.{type(space).__qualname__}", _fields(space)], default=repr)

        def encode(updates: Sequence[Update]) -> Encoded:
            updates = [update.load() for update in updates]
            path = self.folder / f"{_key(settings, updates)}{_SUFFIX}"
            device = next(iter(updates[0].tensors().values())).device
            encoded = _read(path, device)
            with self._lock:
                self.hits += encoded is not None
                self.misses += encoded is None
            if encoded is not None:
                _touch(path)
                return encoded
            encoded = space.encode(updates)
            if self._writable:
                self._write(path, encoded)
            return encoded

        return encode

    def entries(self) -> list[CacheEntry]:
        """Return all entries, those not used for longest first."""
        return sorted(_entries(self.folder), key=lambda entry: (entry.used, entry.path.name))

    def size(self) -> int:
        """Return the size of all entries in bytes."""
        return sum(entry.size for entry in self.entries())

    def clear(self, unused_days: float = 0.0) -> list[CacheEntry]:
        """Remove the entries that were not used for ``unused_days`` days, and what interrupted processes left.

        Returns:
            The entries that were removed.
        """
        limit = time.time() - 24 * 3600 * unused_days
        removed = [entry for entry in self.entries() if entry.used <= limit and _remove(entry.path)]
        remove_abandoned(self.folder)
        self._size = None
        return removed

    def _write(self, path: Path, encoded: Encoded) -> None:
        """Write an entry, then remove old ones if there are too many; a failure only ends the writing."""
        content = _packed(encoded)
        if content is None or content[0].numel() * 4 > self.max_bytes:
            return
        data, metadata = content
        try:
            with atomic_write(path, flush=False) as temporary:  # it has a checksum
                write_safetensors({_DATA: data}, temporary, metadata)
                written = temporary.stat().st_size
            with self._lock:
                self._size = self.size() if self._size is None else self._size + written
                if self._size > self.max_bytes:
                    self._prune()
        except Exception as error:  # safetensors has exceptions of its own for a full disk
            with self._lock:
                if self._writable:
                    self._writable = False
                    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                    warnings.warn(f"{self.folder}: {reason}; alignments are not cached", stacklevel=2)

    def _prune(self) -> None:
        """Remove what was not used for longest, down to 9/10 of the limit, so that this is not done at each entry."""
        entries = self.entries()
        self._size = sum(entry.size for entry in entries)
        for entry in entries:
            if self._size <= 0.9 * self.max_bytes:
                break
            if _remove(entry.path):
                self._size -= entry.size
        remove_abandoned(self.folder)


def _fields(space: Space) -> dict[str, Any]:
    """Return the settings of a space, a dataclass or not."""
    return asdict(space) if hasattr(space, "__dataclass_fields__") else vars(space)


def _key(settings: str, updates: Sequence[Update]) -> str:
    """Return the name of the entry for ``updates`` in a space of these settings."""
    digest = Digest()
    # Another version or device may round otherwise.
    device = next(iter(updates[0].tensors().values())).device.type
    for text in (_FORMAT, torch.__version__, device, settings):
        digest.add_text(text)
    for index, update in enumerate(updates):
        for part, tensor in update.tensors().items():
            digest.add(f"{index}.{part}", tensor)
    return digest.hexdigest()[:40]


def _packed(encoded: Encoded) -> tuple[Tensor, dict[str, str]] | None:
    """Return one flat tensor and what says where each part is in it; None for what cannot be stored so."""
    parts: dict[str, Tensor] = {}
    scales: list[float | None] = []
    for index, update in enumerate(encoded.coordinates):
        if type(update) not in (LowRankUpdate, DenseUpdate):
            return None
        scales.append(update.scale if isinstance(update, LowRankUpdate) else None)
        names = ("A", "B") if isinstance(update, LowRankUpdate) else ("delta",)
        parts.update({f"{index}.{name}": getattr(update, name) for name in names})
    parts.update({name: getattr(encoded, name) for name in ("left", "right") if getattr(encoded, name) is not None})
    if any(tensor.dtype != torch.float32 for tensor in parts.values()):
        return None
    layout, pieces, start = {}, [], 0
    for name, tensor in parts.items():
        turned = not tensor.is_contiguous() and tensor.T.is_contiguous()
        padding = -tensor.numel() % (_ALIGNMENT // 4)
        layout[name] = {"start": start, "shape": list(tensor.shape), "turned": turned}
        flat = (tensor.T if turned else tensor).reshape(-1).cpu()
        pieces += [flat, flat.new_zeros(padding)]
        start += tensor.numel() + padding
    data = torch.cat(pieces)
    about = {"format": _FORMAT, "parts": layout, "scales": scales}
    return data, _padded(data, json.dumps(about | {"crc32": _checksum_of(data, about)}))


def _checksum_of(data: Tensor, about: dict[str, Any]) -> int:
    """Return the CRC-32 of what an entry says of its data, and of the bytes of that flat float32 tensor."""
    checksum, step = zlib.crc32(json.dumps(about).encode()), 1 << 20
    content = bytearray(4 * step)
    buffer = torch.frombuffer(content, dtype=torch.float32)
    for part in data.split(step):
        buffer[: part.numel()] = part
        checksum = zlib.crc32(memoryview(content)[: 4 * part.numel()], checksum)
    return checksum


def _padded(data: Tensor, about: str) -> dict[str, str]:
    """Return metadata long enough that the data begins at a multiple of `_ALIGNMENT` in the file.

    The file is 8 bytes, then a JSON header, filled up with blanks to a multiple of 8, then the data. There is one entry
    of metadata: safetensors writes several in an order of its own, which changes.
    """
    entry = {"dtype": "F32", "shape": list(data.shape), "data_offsets": [0, 4 * data.numel()]}
    header = json.dumps({"__metadata__": {_ABOUT: about}, _DATA: entry}, separators=(",", ":"))
    return {_ABOUT: about + " " * (-(8 + len(header.encode())) % _ALIGNMENT)}


def _read(path: Path, device: torch.device) -> Encoded | None:
    """Return an entry, mapped into memory; None if it is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            layout = json.loads(file.metadata()[_ABOUT])
            data = file.get_tensor(_DATA)
        checksum = layout.pop("crc32")
        if layout["format"] != _FORMAT or checksum != _checksum_in(path, data, layout):
            return None
        if data.data_ptr() % _ALIGNMENT:
            data = data.clone()
        tensors = {name: _part(data, place).to(device) for name, place in layout["parts"].items()}
        coordinates: list[Update] = [
            DenseUpdate(tensors[f"{index}.delta"])
            if scale is None
            else LowRankUpdate(A=tensors[f"{index}.A"], B=tensors[f"{index}.B"], scale=scale)
            for index, scale in enumerate(layout["scales"])
        ]
        return Encoded(coordinates, tensors.get("left"), tensors.get("right"))
    except Exception:  # absent, damaged, or somebody else's: it is only a cache
        return None


def _part(data: Tensor, place: dict[str, Any]) -> Tensor:
    """Return a view of one stored tensor, lying as it lay when it was written."""
    shape = place["shape"]
    view = data[place["start"] : place["start"] + math.prod(shape)]
    return view.view(shape[::-1]).T if place["turned"] else view.view(shape)


def _checksum_in(path: Path, data: Tensor, about: dict[str, Any]) -> int:
    """Return the CRC-32 of what an entry says of its data, and of the data at the end of the file."""
    said = zlib.crc32(json.dumps(about).encode())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(memoryview(content)[len(content) - 4 * data.numel() :], said)


def _entries(folder: Path) -> Iterator[CacheEntry]:
    """Yield the files of the cache."""
    try:
        listing = list(os.scandir(folder))
    except OSError:
        return
    for item in listing:
        if item.name.endswith(_SUFFIX) and not item.name.startswith("."):
            try:
                status = item.stat()
            except OSError:  # another process has just removed it
                continue
            yield CacheEntry(Path(item.path), status.st_size, status.st_mtime)


def _touch(path: Path) -> None:
    """Note that an entry was used."""
    with contextlib.suppress(OSError):  # somebody else's folder, which may only be read
        os.utime(path)


def _remove(path: Path) -> bool:
    """Remove an entry; say whether it was there to be removed."""
    try:
        path.unlink()
    except OSError:
        return False
    return True
