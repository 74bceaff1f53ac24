"""Published data sets of texts: declared as facts, read from the hub or from a folder."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from datamodules.base import SPLITS
from datamodules.sources.raw_text import read_raw
from datamodules.sources.tables import Hub, read_table, require_columns
from datamodules.tasks import Task
from datamodules.text import TextDataModule, Texts, TextSplit, encode_labels, label_words, read_texts
from mergers.errors import SheetbendError

# What published data sets write where an example has no label; such examples are left out.
UNLABELLED = ("-1", "-", "", "unlabeled")


@dataclass(frozen=True)
class TextSource:
    """One place from which a data set can be had.

    Attributes:
        hub: on the hub.
        columns: the columns of its texts, one or two.
        splits: where train, val and test come from, by the source's own names; two may come from one.
    """

    hub: Hub
    columns: tuple[str, ...]
    splits: Mapping[str, str]


@dataclass(frozen=True)
class PublishedText:
    """A data set of texts as published.

    Attributes:
        task: its task.
        sources: where it can be had, the published experiments' own first. A local copy may look like any of them.
        labels: the words of its labels, spelled by `plain`, and the class of ``task`` that each means.
        codes: the words of the labels 0, 1, ... where a copy has numbers alone.
        counts: published number of examples in each split, by the names of the first source, unlabelled ones included.
        max_length: tokens at which the published experiments cut.
    """

    task: Task
    sources: tuple[TextSource, ...]
    labels: Mapping[str, str]
    codes: tuple[str, ...]
    counts: Mapping[str, int]
    max_length: int

    def positions(self) -> dict[str, int]:
        """Return the class of each word and number that may stand for a label; -1 for none."""
        names = {word: self.task.class_names.index(name) for word, name in self.labels.items()}
        numbers = {str(code): names[word] for code, word in enumerate(self.codes)}
        return names | numbers | dict.fromkeys(UNLABELLED, -1)


class PublishedTextDataModule(TextDataModule):
    """Tasks that are declared as `PublishedText`.

    Args:
        tasks: names of the tasks.
        root: a folder with a local copy of each task, ``<root>/<task>``: parquet, jsonl or csv by split as on the hub,
            what ``save_to_disk`` wrote, or the original files. None: the hub.
        max_length: tokens at which texts are cut; none takes the published number. The model's limit holds besides.
        batch_size: training examples in a batch.
        eval_batch_size: examples in a validation or test batch.
        batches_per_epoch: training batches of each task in an epoch; none: one pass.
        num_workers: processes that load batches.
        seed: of the order of training examples.
    """

    overlap = "report"

    def __init__(
        self,
        tasks: list[str],
        root: str | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        self.root = None if root is None else Path(root).expanduser()
        self.max_length = self.checked_max_length(max_length)
        super().__init__(tasks, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)

    @classmethod
    @abstractmethod
    def published(cls) -> dict[str, PublishedText]:
        """Return the declarations by task name."""

    @abstractmethod
    def parts(self, task: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the rows of train, val and test in the split of the source that each comes from.

        Args:
            task: name of the task.
            sizes: labelled examples in the source split that each of train, val and test comes from.
        """

    @classmethod
    def known_tasks(cls) -> dict[str, Task]:
        """Return all tasks that can be named, by name."""
        return {name: one.task for name, one in cls.published().items()}

    def declaration(self, task: str) -> PublishedText:
        """Return all that is declared of ``task``."""
        return self.published()[task]

    def source(self, task: str) -> TextSource:
        """Return where ``task`` is read from on the hub."""
        return self.published()[task].sources[0]

    def sources(self, task: str) -> dict[str, tuple[Hub | Path, str]]:
        """Return what train, val and test are read from, and the split's name there."""
        source = self.source(task)
        place = source.hub if self.root is None else self.root / task
        return {ours: (place, theirs) for ours, theirs in source.splits.items()}

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if a local copy was promised and is not there."""
        if self.root is not None and not (self.root / task).is_dir():
            raise SheetbendError(
                f"data.root {self.root} has no folder {task}; put a copy of {self.source(task).hub} into "
                f"{self.root / task}, or leave data.root out to read the hub"
            )

    def load(self, task: str) -> dict[str, TextSplit]:
        """Return the splits ``train``, ``val`` and ``test`` of one task."""
        declared, read = self.published()[task], {}
        texts = {ours: self._texts(declared, ours, read) for ours in SPLITS}
        rows = self.parts(task, {ours: len(one) for ours, one in texts.items()})
        # Cut as published, then freed of what nothing can be read from; of a pair, one text may be blank.
        splits = {ours: one.take(rows[ours]) for ours, one in texts.items()}
        for ours, one in splits.items():
            blank = one.blank()
            if blank.any():
                self.note(task, f"{blank.sum()} of {len(one)} {ours} examples are blank and left out.")
                splits[ours] = one.take(np.flatnonzero(~blank))
        return self.tokenized(task, splits, self.max_length or declared.max_length)

    def _texts(self, declared: PublishedText, ours: str, read: dict[str, Texts]) -> Texts:
        """Return all labelled examples of the source split that ``ours`` comes from; each is read once."""
        task, theirs = declared.task.name, self.source(declared.task.name).splits[ours]
        if theirs not in read:
            where = f"task {task}, split {theirs}"
            table = self._table(declared, ours)
            columns = _columns(declared, table, where)
            labels = encode_labels(label_words(table, "label"), declared.positions(), where)
            read[theirs] = read_texts(table, columns, labels, where, allow_blank=True)
            published = declared.counts[declared.sources[0].splits[ours]]
            if len(table) != published:
                self.deviation(task, f"its source has {len(table)} examples in {theirs}; {published} are published.")
        return read[theirs]

    def _table(self, declared: PublishedText, ours: str) -> Dataset:
        if self.root is None:
            source = self.source(declared.task.name)
            return read_table(source.hub, source.splits[ours])
        folder, first = self.root / declared.task.name, None
        # Copies of different sources call a split by different names.
        for name in dict.fromkeys(source.splits[ours] for source in declared.sources):
            try:
                raw = read_raw(declared.task.name, folder, name)
                return read_table(folder, name) if raw is None else raw
            except SheetbendError as error:
                first = first or error
        raise first


def _columns(declared: PublishedText, table: Dataset, where: str) -> tuple[str, ...]:
    """Return the text columns of whichever source the table looks like."""
    choices = [source.columns for source in declared.sources] + [("premise", "hypothesis")]
    for columns in choices:
        if set(columns) <= set(table.column_names):
            require_columns(table, ["label"], where)
            return columns
    require_columns(table, [*choices[0], "label"], where)
    raise AssertionError("a table without its columns was not refused")
