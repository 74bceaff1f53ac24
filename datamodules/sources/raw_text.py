"""Sentence pairs in the files in which they were first published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import Dataset

from datamodules.sources.tables import read_table, require_columns
from mergers.adapters.files import one_line
from mergers.errors import SheetbendError

COLUMNS = ["premise", "hypothesis", "label"]


@dataclass(frozen=True)
class RawFiles:
    """The original files of one data set.

    Attributes:
        files: name of the file of each split; they may lie in a folder of their own.
        read: returns the table of (file, split), with the columns premise, hypothesis and label.
    """

    files: Mapping[str, str]
    read: Callable[[Path, str], Dataset]


def read_raw(task: str, folder: Path, split: str) -> Dataset | None:
    """Return a split from the original files of a data set, if ``folder`` has them.

    Args:
        task: sick, snli or scitail; others have no such files.
        folder: holds them, or a folder with them.
        split: train, validation or test.

    Raises:
        SheetbendError: The file is not what its name says.
    """
    raw = RAW.get(task)
    found = sorted(folder.rglob(raw.files[split])) if raw else []
    if not found:
        return None
    return raw.read(found[0], split)


def _sick(path: Path, split: str) -> Dataset:
    table = _tabs(path)
    require_columns(table, ["sentence_A", "sentence_B", "entailment_label", "SemEval_set"], f"file {path}")
    part = {"train": "TRAIN", "validation": "TRIAL", "test": "TEST"}[split]
    rows = [row for row, name in enumerate(table["SemEval_set"]) if name == part]
    return _named(table.select(rows), "sentence_A", "sentence_B", "entailment_label")


def _snli(path: Path, split: str) -> Dataset:
    table = read_table(path, split)
    require_columns(table, ["sentence1", "sentence2", "gold_label"], f"file {path}")
    return _named(table, "sentence1", "sentence2", "gold_label")


def _scitail(path: Path, split: str) -> Dataset:
    return _tabs(path, names=COLUMNS)


def _tabs(path: Path, names: list[str] | None = None) -> Dataset:
    """Read a file of tab-separated text, in which a quotation mark is one and NA is a word."""
    try:
        frame = pd.read_csv(path, sep="\t", names=names, quoting=3, keep_default_na=False, dtype=str)
    except (ValueError, pd.errors.ParserError) as error:
        raise SheetbendError(f"file {path}: cannot be read ({one_line(error)}); repair or replace it") from None
    return Dataset.from_pandas(frame, preserve_index=False)


def _named(table: Dataset, *columns: str) -> Dataset:
    return table.select_columns(list(columns)).rename_columns(dict(zip(columns, COLUMNS, strict=True)))


RAW = {
    "sick": RawFiles(dict.fromkeys(("train", "validation", "test"), "SICK.txt"), _sick),
    "snli": RawFiles(
        {"train": "snli_1.0_train.jsonl", "validation": "snli_1.0_dev.jsonl", "test": "snli_1.0_test.jsonl"}, _snli
    ),
    "scitail": RawFiles(
        {
            "train": "scitail_1.0_train.tsv",
            "validation": "scitail_1.0_dev.tsv",
            "test": "scitail_1.0_test.tsv",
        },
        _scitail,
    ),
}
