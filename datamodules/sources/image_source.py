"""Labelled pictures as they stand on disk or in a table: what every image format is read into."""

import hashlib
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images import Raw
from mergers.errors import SheetbendError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def _nothing() -> None:
    """Release what holds no memory."""


@dataclass(frozen=True)
class ImageSource:
    """The pictures and labels of one split of one source; a picture is read when it is asked for.

    Attributes:
        raw: returns picture number i: the bytes of its file, or uint8 (H, W) or (H, W, 3).
        where: returns what messages call picture number i, such as its path.
        labels: int64 (N,), positions in ``class_names``, or the source's numbers where it has no names for them.
        class_names: the classes as the source calls them; none: it has numbers only.
        stamp: changes when the pictures do; for caches, so it must be found without reading them.
        release: gives back the memory of what was read; pictures can still be asked for.

    Raises:
        SheetbendError: a label is outside the range.
    """

    raw: Callable[[int], Raw]
    where: Callable[[int], str]
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    stamp: str
    release: Callable[[], None] = _nothing

    def __post_init__(self) -> None:
        count = np.inf if self.class_names is None else len(self.class_names)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= count))
        if len(outside):
            least = "at least 0" if self.class_names is None else f"0 to {len(self.class_names) - 1}"
            raise SheetbendError(
                f"{self.where(int(outside[0]))}: its label {int(self.labels[outside[0]])} is outside the range "
                f"({least}); mend the label, or take a split whose labels are published"
            )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)


def source_of_files(paths: Sequence[Path], labels: Sequence[int], class_names: Sequence[str]) -> ImageSource:
    """Return the source of one picture a file.

    Raises:
        SheetbendError: a file is not there, or a label is outside the range.
    """
    files = _Files(list(paths))
    return ImageSource(files.raw, files.where, np.asarray(labels, np.int64), tuple(class_names), _stamp(paths))


def source_of_arrays(
    load: Callable[[], np.ndarray],
    files: Sequence[Path],
    labels: np.ndarray,
    class_names: Sequence[str],
    part: str = "",
) -> ImageSource:
    """Return the source of pictures that stand in one array.

    Args:
        load: returns uint8 (N, H, W) or (N, H, W, 3); called when the first picture is asked for.
        files: what the array is read from.
        labels: integers (N,).
        class_names: what they are positions in.
        part: which part of the files it is.

    Raises:
        SheetbendError: a file is not there, or a label is outside the range.
    """
    array, stamp = _Array(load, str(files[0])), f"{_stamp(files)}\x1f{part}"
    labels = np.asarray(labels).astype(np.int64)
    return ImageSource(array.raw, array.where, labels, tuple(class_names), stamp, array.release)


# Classes, not closures: a source goes to worker processes.
@dataclass
class _Files:
    paths: list[Path]

    def raw(self, i: int) -> bytes:
        return self.paths[i].read_bytes()

    def where(self, i: int) -> str:
        return str(self.paths[i])


class _Array:
    def __init__(self, load: Callable[[], np.ndarray], name: str):
        self.load, self.name = load, name
        self._pictures: np.ndarray | None = None
        self._lock = threading.Lock()

    def raw(self, i: int) -> np.ndarray:
        with self._lock:
            if self._pictures is None:
                self._pictures = self.load()
            return self._pictures[i]

    def release(self) -> None:
        self._pictures = None

    def where(self, i: int) -> str:
        return f"picture {i} of {self.name}"

    def __reduce__(self) -> tuple:
        return _Array, (self.load, self.name)


@dataclass
class _Rows:
    table: Any
    column: str
    name: str

    def raw(self, i: int) -> bytes:
        cell = self.table[i][self.column]
        if isinstance(cell, dict):
            cell = cell.get("bytes") or self._file(i, cell.get("path"))
        if not isinstance(cell, bytes):
            raise SheetbendError(
                f"{self.where(i)}: column {self.column!r} holds {type(cell).__name__}, not pictures; name the column "
                "that does"
            )
        return cell

    def _file(self, i: int, path: Any) -> Any:
        """Return the bytes of the file that a cell names; nothing for a cell that names none."""
        if not isinstance(path, str) or "\0" in path or not Path(path).is_file():
            raise SheetbendError(f"{self.where(i)}: it has no picture, but names {path!r}, which is no file; mend it")
        return Path(path).read_bytes()

    def where(self, i: int) -> str:
        return f"row {i} of {self.name}"


def _stamp(paths: Sequence[Path]) -> str:
    """Return a hash of the files' names, sizes and times.

    Raises:
        SheetbendError: a file is not there.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
        except OSError as error:
            raise SheetbendError(f"{path}: {error.strerror}; complete the copy, or take another") from None
        if not stat.S_ISREG(facts.st_mode):  # a folder, a pipe, or a device that has no end
            raise SheetbendError(f"{path} is no file; take it away")
        digest.update(f"{path.resolve()}\x1f{facts.st_size}\x1f{facts.st_mtime_ns}\x1e".encode())
    return digest.hexdigest()


def source_of_table(table: Any, image_column: str, label_column: str, where: str) -> ImageSource:
    """Return the source of a table with one picture a row.

    Args:
        table: a ``datasets.Dataset``.
        image_column: pictures: encoded bytes, or what the hub makes of them (bytes or a path).
        label_column: class labels, integers or texts.
        where: what messages call the table.

    Raises:
        SheetbendError: a column is missing or is of another kind, or a label is outside the range.
    """
    from datasets import Image

    from datamodules.sources.tables import class_names, column, require_columns

    require_columns(table, [image_column, label_column], where)
    feature = table.features[image_column]
    if isinstance(feature, Image) and feature.decode:
        table = table.cast_column(image_column, Image(decode=False))
    values, names = column(table, label_column), class_names(table, label_column)
    if names is not None:
        # A missing label is outside the range like the hub's -1.
        labels = [-1 if value is None else value for value in values]
    else:
        names, labels = _discovered(values, label_column, where)
    # The library's identity of a table: its files and all that was done to it.
    stamp = f"{table._fingerprint}\x1f{image_column}"
    names = None if names is None else tuple(names)
    rows = _Rows(table.select_columns([image_column]), image_column, where)
    return ImageSource(rows.raw, rows.where, np.asarray(labels, np.int64), names, stamp)


def _discovered(values: list[Any], name: str, where: str) -> tuple[list[str] | None, list[int]]:
    """Return the class names that stand in a column, none for numbers, and the label of each row."""
    kind = str if any(isinstance(value, str) for value in values) else int
    for row, value in enumerate(values):
        if isinstance(value, bool) and kind is int:
            continue
        if not isinstance(value, kind):
            raise SheetbendError(
                f"row {row} of {where}: column {name!r} holds {value!r}; labels are texts or whole numbers"
            )
    if kind is int:
        return None, [int(value) for value in values]
    names = sorted(set(values))
    position = {value: number for number, value in enumerate(names)}
    return names, [position[value] for value in values]
