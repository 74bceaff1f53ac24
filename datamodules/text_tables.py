"""One's own texts by configuration alone: a file, a folder or a hub data set, and the names of its columns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset

from datamodules.base import SPLITS
from datamodules.own_data import (
    check_hub,
    check_one_file,
    check_overlap,
    check_shares,
    check_splits,
    label_positions,
    named_classes,
    read_own_table,
    without_repeats,
)
from datamodules.sources.tables import Hub, class_names, column, require_columns
from datamodules.splits import divided, grouped
from datamodules.tasks import Task
from datamodules.text import TextDataModule, Texts, TextSplit, read_texts
from mergers.errors import SheetbendError


@dataclass(frozen=True)
class TextTable:
    """Where the examples of one task are, and what its columns mean.

    Attributes:
        text: the column of the text, or two columns for pairs.
        label: the column of the label: words, whole numbers, or named classes.
        path: a file (.csv, .tsv, .jsonl, .json, .parquet; .gz too), or a folder with one such file a split.
        hub: in the place of ``path``, a data set on the hub, ``org/name``.
        config: its configuration on the hub, where it has several.
        revision: its branch, tag or commit on the hub.
        splits: what train, val and test are called in the folder or on the hub; with neither ``path`` nor ``hub``,
            their files. Without val or test, these are cut from train; with a ``path`` that is a file, both are.
        class_names: the classes, or a map from the labels as they are written to classes, null for those to be left
            out. Of a list, labels are names; or whole numbers (also as text), which are positions in it, unless a class
            is called by a number. None: all labels of train, in ascending order.
        val: share of train that is cut off for val, where val is not given; every class gives its share, or, with
            ``group``, whole groups make up about that share.
        test: the same for test.
        group: a column; examples of one value (a question with its answers, say) never come into two splits.
        label_space: tasks that name the same one have the same classes, so that their heads can be merged; those that a
            task's train split lacks are left out of its choice. Without ``class_names`` they are those of the tasks in
            use: give them where tasks are trained apart.
        metric: accuracy, matthews or accuracy_and_f1.
    """

    text: str | list[str]
    label: str
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str] | None = None
    class_names: list[str] | dict[str | int, str | None] | None = None
    val: float = 0.1
    test: float = 0.2
    group: str | None = None
    label_space: str | None = None
    metric: str = "accuracy"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the text columns."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if the fields do not fit together, or a file is not there; reads nothing."""
        where = f"task {task}"
        if not 1 <= len(self.columns) <= 2:
            raise SheetbendError(f"{where}: text names {len(self.columns)} columns; name one, or two for pairs")
        if self.path is not None and self.hub is not None:
            raise SheetbendError(f"{where}: path {self.path} and hub {self.hub} are both given; give one")
        check_hub(where, self.hub, self.config, self.revision)
        if self.path is None and self.hub is None and self.splits is None:
            raise SheetbendError(f"{where}: there is nothing to read; give path, hub, or splits with a file each")
        whole = self.path is not None and not Path(self.path).expanduser().is_dir()
        if whole:
            check_one_file(where, self.path, self.splits)
        else:
            check_splits(where, self.splits, "what train is called (without path and hub: its file)")
        check_shares(where, self.val, self.test)
        for source, _ in self.sources().values():
            if isinstance(source, Path) and not source.exists():
                raise SheetbendError(f"{where}: {source} is not there; check the path")

    def sources(self) -> dict[str, tuple[Hub | Path, str]]:
        """Return what each split is read from and its name there; those that are cut from train come from its place."""
        if self.splits is None:
            given = {"train": (Path(self.path).expanduser(), "train")}
        elif self.hub is not None:
            hub = Hub(self.hub, self.config, self.revision)
            given = {ours: (hub, theirs) for ours, theirs in self.splits.items()}
        elif self.path is not None:
            given = {ours: (Path(self.path).expanduser(), theirs) for ours, theirs in self.splits.items()}
        else:
            given = {ours: (Path(file).expanduser(), ours) for ours, file in self.splits.items()}
        return {ours: given.get(ours, given["train"]) for ours in SPLITS}

    def cut(self) -> dict[str, float]:
        """Return the shares of the splits that come out of train's place; train's is what is left."""
        shares = {name: getattr(self, name) for name in ("val", "test") if name not in (self.splits or {})}
        return {"train": 1 - sum(shares.values()), **shares}


class TextTableDataModule(TextDataModule):
    """Tasks of one's own texts, or of any data set on the hub with its columns named.

    Args:
        tables: for each task, where its examples are.
        tasks: those of them that are used; none: all.
        max_length: tokens at which texts are cut; none: the model's limit.
        overlap: whether a text in two splits is an error (refuse), or counted in the caveats of the results (report).
        batch_size: training examples in a batch.
        eval_batch_size: examples in a validation or test batch.
        batches_per_epoch: training batches of each task in an epoch; none: one pass.
        num_workers: processes that load batches.
        seed: of the order of training examples; which examples are cut off for val and test depends on the task's name
            and the examples alone.
    """

    def __init__(
        self,
        tables: dict[str, TextTable],
        tasks: list[str] | None = None,
        max_length: int | None = None,
        overlap: Literal["refuse", "report"] = "refuse",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        self.overlap = check_overlap(overlap)
        if not tables:
            raise SheetbendError("data.tables is empty; declare a task there: {name: {path: .., text: .., label: ..}}")
        self.tables, self.max_length = tables, self.checked_max_length(max_length)
        super().__init__(
            list(tables) if tasks is None else tasks,
            batch_size,
            eval_batch_size,
            batches_per_epoch,
            num_workers,
            seed,
        )

    def task_table(self) -> dict[str, Task]:
        """Return the tasks in use; where classes are not given, or are shared, reads the labels of train."""
        for name in self.task_names:
            self.check(name)
        present = {name: self._present(name, self.tables[name]) for name in self.task_names}
        tasks = {}
        for name in self.task_names:
            table = self.tables[name]
            space = table.label_space
            mates = self._mates(space) if space else [name]
            classes = self._classes(mates, present)
            absent = tuple(one for one in classes if space and one not in present[name])
            tasks[name] = Task(name, classes, label_set=space, absent=absent, metric=table.metric)
        return tasks

    def known_names(self) -> list[str]:
        """Return the names of all tables; reads nothing."""
        return list(self.tables)

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if what is said of ``task`` does not fit together, or a file is not there."""
        self.tables[task].check(task)

    def sources(self, task: str) -> dict[str, tuple[Hub | Path, str]]:
        """Return what train, val and test are read from, and the split's name there; refuses what `check` does."""
        self.check(task)
        return self.tables[task].sources()

    def load(self, task: str) -> dict[str, TextSplit]:
        """Return the splits ``train``, ``val`` and ``test`` of one task."""
        table, texts, groups = self.tables[task], {}, {}
        shares = table.cut()
        for ours in SPLITS:
            if ours == "train" or ours not in shares:
                texts[ours], groups[ours] = self._read(task, ours)
        if len(shares) > 1:
            first = without_repeats(self, task, texts["train"].keys(), "examples repeat the text of another")
            pool, its_groups = texts["train"].take(first), [groups["train"][row] for row in first]
            rows = divided(task, pool.labels, shares) if table.group is None else grouped(task, its_groups, shares)
            for ours in shares:
                texts[ours], groups[ours] = pool.take(rows[ours]), [its_groups[row] for row in rows[ours]]
        if table.group is not None:
            _refuse_shared_groups(task, table.group, groups)
        return self.tokenized(task, {ours: texts[ours] for ours in SPLITS}, self.max_length)

    def _table(self, task: str, ours: str) -> tuple[Dataset, str]:
        table = self.tables[task]
        source, theirs = table.sources()[ours]
        where = f"task {task}, {source}" + (
            "" if isinstance(source, Path) and source.is_file() else f", split {theirs}"
        )
        read = read_own_table(task, source, theirs)
        require_columns(read, [*table.columns, table.label, *([table.group] if table.group else [])], where)
        return read, where

    def _mates(self, space: str) -> list[str]:
        """Return the tables that have a say in the classes of a label space: those in use, and those that name them."""
        return [
            name
            for name, one in self.tables.items()
            if one.label_space == space and (name in self.task_names or one.class_names is not None)
        ]

    def _present(self, task: str, table: TextTable) -> list[str]:
        """Return the classes of train; where they are given and its own, without reading it."""
        if table.class_names is not None and table.label_space is None:
            return list(named_classes(table.class_names))
        read, where = self._table(task, "train")
        labels = _labels(read, table.label, where)
        if isinstance(table.class_names, dict):
            # Which class a label means is known; all labels are checked when the examples are read.
            means = {str(word): one for word, one in table.class_names.items()}
            return [one for one in dict.fromkeys(means.get(label) for label in labels) if one is not None]
        if table.class_names is not None:
            positions = label_positions(labels, table.class_names, table.class_names, _rows_of(where))
            return [table.class_names[code] for code in np.unique(positions)]
        found = _ascending({label for label in labels if label})
        if len(found) < 2 and table.label_space is None:
            raise SheetbendError(f"{where}: column {table.label!r} has {len(found)} label; classes must be 2 or more")
        return list(found)

    def _classes(self, mates: Sequence[str], present: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Return the classes of tasks that share them: as listed, else as mapped to, else as found."""
        tables = [self.tables[name] for name in mates]
        lists = list(dict.fromkeys(tuple(one.class_names) for one in tables if isinstance(one.class_names, list)))
        if len(lists) > 1:
            raise SheetbendError(
                f"tasks {', '.join(mates)} of label space {tables[0].label_space!r} list different class_names; "
                "list the same, in one order"
            )
        maps = [one.class_names for one in tables if isinstance(one.class_names, dict)]
        mapped = dict.fromkeys(name for one in maps for name in named_classes(one))
        found = {one for name in mates for one in present.get(name, ())}
        classes = lists[0] if lists else tuple(mapped) or _ascending(found)
        for name in mapped:
            if name not in classes:
                raise SheetbendError(
                    f"tasks {', '.join(mates)}: class {name!r} is none of {', '.join(classes)}; correct class_names"
                )
        return classes

    def _read(self, task: str, ours: str) -> tuple[Texts, list]:
        """Return the examples of a source that have a class, and their groups."""
        table, (read, where) = self.tables[task], self._table(task, ours)
        classes = self.task(task).class_names
        labels = _labels(read, table.label, where)
        labels = label_positions(labels, table.class_names, classes, _rows_of(where))
        texts = read_texts(read, table.columns, labels, where)
        values = column(read, table.group) if table.group else [None] * len(read)
        return texts, [values[row] for row in np.flatnonzero(labels >= 0)]


def _refuse_shared_groups(task: str, name: str, groups: Mapping[str, Sequence]) -> None:
    seen: dict = {}
    for split in SPLITS:
        for group in dict.fromkeys(groups[split]):
            if group in seen:
                raise SheetbendError(
                    f"task {task}: {name} {group!r} is in {seen[group]} and in {split}; a group must be in one split"
                )
        seen.update(dict.fromkeys(groups[split], split))


def _labels(table: Dataset, name: str, where: str) -> list[str]:
    """Return each row's label as it is written; empty where there is none.

    Raises:
        SheetbendError: a label is neither a word nor a whole number.
    """
    values, names = column(table, name), class_names(table, name)
    if names is not None:
        return [names[value] if value is not None and 0 <= value < len(names) else "" for value in values]
    labels = [_written(value) for value in values]
    if None in labels:
        row = labels.index(None)
        raise SheetbendError(
            f"{where}, row {row + 1}: label {values[row]!r} is neither a word nor a whole number; name another column, "
            "or write classes there"
        )
    return labels


def _written(value: object) -> str | None:
    """Spell a label, 1.0 as 1, since some tables keep whole numbers so; empty if missing, None for what is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) else None


def _ascending(labels: set[str]) -> tuple[str, ...]:
    """Sort labels, numbers as numbers."""
    try:
        return tuple(sorted(labels, key=int))
    except ValueError:
        return tuple(sorted(labels))


def _rows_of(where: str) -> Callable[[int], str]:
    """Return what names a row of a table in messages, counted from 1."""
    return lambda row: f"{where}, row {row + 1}"
