"""Tables of examples: a file, a folder in a layout of the hub, or a data set on the hub itself."""

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets.data_files import resolve_pattern
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from datamodules.sources.hub import PARQUET_COPY, Hub, card, fetch, split_patterns
from datamodules.sources.quiet import quiet_libraries
from mergers.adapters.files import one_line
from mergers.errors import SheetbendError, did_you_mean
from mergers.files import cache_folder

__all__ = [
    "PARQUET_COPY",
    "Hub",
    "class_names",
    "column",
    "read_table",
    "require_columns",
]

# What a table may be written in, best first, and how it is read. Text is text: a cell that says NA is not empty, and
# a quotation mark in a .tsv is one.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": 3}),
}
# Of a table of texts. What reads it takes time with their square.
_MOST_COLUMNS = 4096
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@quiet_libraries()
def read_table(source: Hub | str | Path, split: str) -> Dataset:
    """Return one split of a data set as a table on disk, mapped into memory; pictures stay encoded.

    A folder may be what ``Dataset.save_to_disk`` wrote, or hold ``<split>.<kind>``,
    ``<split>-00000-of-00002.<kind>`` or ``<split>/*.<kind>``, itself or in ``data/`` or in its only folder; kinds are
    parquet, jsonl, json, csv and tsv, also with ``.gz``. Where its README.md says, as on the hub, which files a split
    has, that counts.

    Args:
        source: a data set on the hub, a file (the whole of it is the split), or a folder.
        split: name of the split in the source, such as ``validation_matched``.

    Raises:
        SheetbendError: It is not there and cannot be had, has no such split, or cannot be read.
    """
    if isinstance(source, Hub):
        return _read_folder(fetch(source, split), split, str(source), source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split, f"folder {path}", Hub(path.name))
    if not path.exists():
        raise SheetbendError(f"{path}: there is no such file or folder; check the path")
    return _load([path], f"file {path}")


def require_columns(table: Dataset, names: Sequence[str], where: str) -> None:
    """Raise `SheetbendError` if a column is missing.

    Args:
        table: what is read.
        names: the columns that are needed.
        where: what the message calls the table.
    """
    for name in names:
        if name not in table.column_names:
            raise SheetbendError(
                f"{where} has no column {name!r}{did_you_mean(name, table.column_names)}; "
                f"it has {', '.join(table.column_names)}; name one of these"
            )


def class_names(table: Dataset, name: str) -> list[str] | None:
    """Return what the integers of a column mean, where the table says it."""
    feature = table.features[name]
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def column(table: Dataset, name: str) -> list:
    """Return the values of a column in the order of the table."""
    return table.select_columns(name).with_format("arrow")[:][name].to_pylist()


def _read_folder(folder: Path, split: str, where: str, hub: Hub) -> Dataset:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _encoded(_saved(folder, split, where))
    if hub.files is not None:
        files = _resolve([hub.files[split]], folder)
    elif (named := split_patterns(folder, hub.config, where)) is not None:
        if split not in named:
            raise SheetbendError(f"{where} has no split {split!r}; it has {', '.join(named)}")
        files = _resolve(named[split], folder)
    else:
        files = _files_by_name(folder, split, hub.config, where)
    if not files:
        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        there = [name for name in there if not name.startswith(".")]
        shown = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
        raise SheetbendError(
            f"{where} has no files of a split {split!r}; put {split}.parquet, {split}.jsonl, {split}.csv or "
            f"{split}-00000-of-00001.parquet there (it holds {shown or 'nothing'})"
        )
    _refuse_missing_shards(files, where)
    return _with_class_names(_load(files, f"{where}, split {split}"), folder, hub.config)


def _saved(folder: Path, split: str, where: str) -> Dataset:
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # of json, pyarrow and the library itself
        raise SheetbendError(
            f"{where}: cannot be read as a saved data set ({one_line(error)}); save it again"
        ) from None
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise SheetbendError(f"{where} has no split {split!r}; it has {', '.join(saved)}")
    return saved[split]


def _resolve(patterns: Sequence[str], folder: Path) -> list[Path]:
    """Return the files of a folder that patterns name, which its card may have from anybody."""
    files, here = [], folder.resolve()
    for pattern in patterns:
        if not isinstance(pattern, str) or "://" in pattern or "::" in pattern:
            raise SheetbendError(f"{folder}: its README.md names {pattern!r}, which is no file in it; correct it")
        try:
            found = [Path(os.path.normpath(path)) for path in resolve_pattern(pattern, str(here))]
        except FileNotFoundError:
            continue
        except Exception as error:  # of fsspec, for patterns that are none
            raise SheetbendError(f"{folder}: its README.md names {pattern!r} ({one_line(error)}); correct it") from None
        outside = next((path for path in found if not path.is_relative_to(here)), None)
        if outside is not None:
            raise SheetbendError(f"{folder}: its README.md names {outside}, which is outside of it; correct it")
        files.extend(found)
    return files


def _files_by_name(folder: Path, split: str, config: str | None, where: str) -> list[Path]:
    """Return the files of a split by their names alone; empty if there are none."""
    for base in (folder / (config or "."), folder, folder / "data"):
        if files := _files_in(base, split):
            return files
    inside = [base for base in sorted(folder.iterdir()) if base.is_dir() and base.name != split]
    found = {base: files for base in inside if (files := _files_in(base, split))}
    if len(found) > 1:
        raise SheetbendError(
            f"{where} has a split {split!r} in several of its folders: "
            f"{', '.join(base.name for base in found)}; give one of these folders"
        )
    return next(iter(found.values()), [])


def _files_in(base: Path, split: str) -> list[Path]:
    if not base.is_dir():
        return []
    for suffix in READERS:
        name = re.compile(rf"{re.escape(split)}(-\d{{5}}-of-\d{{5}})?{re.escape(suffix)}(\.gz)?")
        files = [path for path in sorted(base.iterdir()) if name.fullmatch(path.name)]
        files = files or sorted(base.glob(f"{split}/*{suffix}")) or sorted(base.glob(f"{split}/*{suffix}.gz"))
        if files:
            return files
    return []


def _refuse_missing_shards(files: Sequence[Path], where: str) -> None:
    """A copy that was interrupted is not a smaller data set."""
    shards: dict[str, list[str]] = {}
    for path in files:
        if match := SHARD.search(path.name):
            shards.setdefault(SHARD.sub(f"-*-of-{match[2]}", path.name), []).append(match[1])
    for name, numbers in shards.items():
        total = int(name.rpartition("-of-")[2][:5])
        missing = [number for number in range(total) if f"{number:05d}" not in numbers]
        if missing:
            raise SheetbendError(
                f"{where}: of {total} files {name}, number {missing[0]:05d} is missing; complete the copy"
            )


def _load(files: Sequence[Path], where: str) -> Dataset:
    suffixes = {Path(path.name.removesuffix(".gz")).suffix.lower() for path in files}
    if len(suffixes) != 1 or not suffixes <= READERS.keys():
        raise SheetbendError(
            f"{where}: {', '.join(sorted(suffixes)) or 'no suffix'} cannot be read as one table; "
            f"give files of one kind: {', '.join(READERS)}"
        )
    reader, options = READERS[suffixes.pop()]
    if not any(path.stat().st_size for path in files):
        raise SheetbendError(f"{where}: it has no rows; fill it, or name another")
    if reader == "csv":
        _require_few_columns(files, options.get("sep", ","), where)
    names = [str(path) for path in files]
    try:
        # Always as "train": split names may have signs that the library does not take.
        table = load_dataset(
            reader, data_files={"train": names}, split="train", cache_dir=str(cache_folder("tables")), **options
        )
    except Exception as error:  # of pandas, pyarrow and json
        reason = one_line(error.__cause__ or error)
        if "corresponds to no data" in reason:  # a header alone
            raise SheetbendError(f"{where}: it has no rows; fill it, or name another") from None
        raise SheetbendError(f"{where}: cannot be read as {reader} ({reason}); repair or replace it") from error
    if not len(table):
        raise SheetbendError(f"{where}: it has no rows; fill it, or name another")
    return _encoded(table)


def _require_few_columns(files: Sequence[Path], separator: str, where: str) -> None:
    """A line of a hundred thousand commas takes the library minutes and much memory."""
    for path in files:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                header = file.readline(_MOST_COLUMNS * 256)
        except (OSError, EOFError, zlib.error) as error:
            raise SheetbendError(f"{where}: cannot be read ({one_line(error)}); repair or replace it") from None
        if header.count(separator.encode()) >= _MOST_COLUMNS:
            raise SheetbendError(f"{where}: it has more than {_MOST_COLUMNS:,} columns; keep those that are needed")


def _encoded(table: Dataset) -> Dataset:
    """Leave pictures as the bytes they are stored in."""
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    return table


def _with_class_names(table: Dataset, folder: Path, config: str | None) -> Dataset:
    """Name the classes of integer columns as the card of the data set does; parquet files mostly do it themselves."""
    infos = card(folder).get("dataset_info")
    if not infos:
        return table
    try:
        known = DatasetInfosDict.from_dataset_card_data(DatasetCardData(dataset_info=infos))
    except Exception:  # other people's YAML: no names then
        return table
    info = known.get(config or "default") or (next(iter(known.values())) if len(known) == 1 else None)
    features: Features = (info and info.features) or Features()
    for name, feature in features.items():
        has = table.features.get(name)
        if isinstance(feature, ClassLabel) and isinstance(has, Value) and has.dtype.startswith("int"):
            table = table.cast_column(name, feature)
    return table
