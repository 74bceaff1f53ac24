"""Texts and pairs of texts as examples: tokenised once, padded to the longest of a batch."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.base import TaskDataModule
from datamodules.sources.tables import class_names, column
from mergers.errors import SheetbendError, did_you_mean

# Examples that are tokenised or hashed at a time.
BLOCK = 4096


@dataclass(frozen=True)
class Texts:
    """Examples as they are read.

    Attributes:
        columns: one text column, or two for pairs; each of N strings, kept as Arrow does.
        labels: int64 (N,).
        rows: int64 (N,), where each stands in what was read, from 1; none: not known.
    """

    columns: tuple[pa.ChunkedArray, ...]
    labels: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Texts":
        """Return the examples at ``rows``, in that order."""
        rows = np.asarray(rows, np.int64)
        columns = tuple(one.take(pa.array(rows)) for one in self.columns)
        return Texts(columns, self.labels[rows], None if self.rows is None else self.rows[rows])

    def blank(self) -> np.ndarray:
        """Return which examples have no text at all, in none of their columns, bool (N,)."""
        return np.logical_and.reduce([_blank(one) for one in self.columns])

    def blocks(self) -> Any:
        """Yield the examples some thousands at a time, as one list of strings a column."""
        for start in range(0, len(self), BLOCK):
            yield [one.slice(start, BLOCK).to_pylist() for one in self.columns]

    def keys(self) -> list[bytes]:
        """Return a hash of each example's texts; labels do not count."""
        return [
            hashlib.sha256("\x1f".join(texts).encode()).digest()
            for block in self.blocks()
            for texts in zip(*block, strict=True)
        ]


def _blank(values: pa.ChunkedArray) -> np.ndarray:
    """Return which strings are missing, empty or all spaces, bool (N,)."""
    return pc.equal(pc.utf8_trim_whitespace(values), "").fill_null(True).to_numpy()


def read_texts(
    table: Dataset, columns: Sequence[str], labels: np.ndarray, where: str, allow_blank: bool = False
) -> Texts:
    """Return the texts of ``columns`` with their labels; rows of negative label are left out.

    Args:
        table: what is read.
        columns: one or two columns of strings.
        labels: int64 (rows of the table,).
        where: what messages call the table.
        allow_blank: take texts that are empty or all spaces as they are.

    Raises:
        SheetbendError: A column holds no text, or a row that is used has none.
    """
    kept = np.flatnonzero(labels >= 0)
    arrow = table.select_columns(list(columns)).with_format("arrow")[:]
    texts = []
    for name in columns:
        if not (pa.types.is_string(arrow[name].type) or pa.types.is_large_string(arrow[name].type)):
            raise SheetbendError(f"{where}: column {name!r} holds {arrow[name].type}, not text; name another")
        values = arrow[name].cast(pa.large_string()).take(pa.array(kept))
        empty = values.is_null().to_numpy() if allow_blank else _blank(values)
        if empty.any():
            row = kept[empty.argmax()] + 1
            raise SheetbendError(f"{where}, row {row}: column {name!r} is empty; fill it in, or leave the row out")
        texts.append(values)
    return Texts(tuple(texts), labels[kept].astype(np.int64), kept + 1)


def label_words(table: Dataset, name: str) -> list[str]:
    """Return each row's label in the words of the table, spelled by `plain`.

    They are the names of its classes, else what stands in the column ``<name>_text`` beside it, else the values as
    they are. Where there is no label, it is empty, or -1 where the table names its classes.
    """
    names = class_names(table, name)
    if names is not None:
        values = column(table, name)
        words = [names[value] if value is not None and 0 <= value < len(names) else "-1" for value in values]
    else:
        words = column(table, f"{name}_text" if f"{name}_text" in table.column_names else name)
    spelled = {word: plain("" if word is None else str(word)) for word in set(words)}
    return [spelled[word] for word in words]


def plain(word: str) -> str:
    """Spell a label the one way: lower case, spaces for ``_`` and ``-`` where it begins with a letter.

    >>> plain("Not_Entailment"), plain("-1"), plain("-")
    ('not entailment', '-1', '-')
    """
    word = word.strip().lower()
    return word if not word[:1].isalpha() else word.replace("_", " ").replace("-", " ")


def encode_labels(words: Sequence[str], positions: Mapping[str, int], where: str) -> np.ndarray:
    """Return the positions of labels' words, int64 (N,).

    Raises:
        SheetbendError: A word has no position; the message names the row, counted from 1.
    """
    for row, word in enumerate(words, 1):
        if word not in positions:
            known = list(positions)
            raise SheetbendError(
                f"{where}, row {row}: unknown label {word!r}{did_you_mean(word, known)}; known labels: "
                f"{', '.join(map(repr, known))}"
            )
    return np.array([positions[word] for word in words], np.int64)


class TextSplit:
    """A split of tokenised texts.

    Tokens are made when they are first needed, so that a test never tokenises training data; `prepare` makes them
    before worker processes start.

    Args:
        texts: the examples.
        tokenizer: of transformers, with a pad token; texts of a pair are joined its way, and padded on its side.
        max_length: tokens at most; longer texts are cut (of a pair, the longer one first). None: the tokenizer's limit.
        name: what messages call the split.
    """

    def __init__(
        self,
        texts: Texts,
        tokenizer: Any,
        max_length: int | None = None,
        name: str = "a split of texts",
    ):
        if tokenizer.pad_token_id is None:
            raise SheetbendError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no pad token; give it one"
            )
        self.texts, self.tokenizer = texts, tokenizer
        self.max_length, self.name = max_length, name
        self.labels = torch.from_numpy(texts.labels)
        self._tokens: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)

    def prepare(self) -> None:
        """Tokenise, unless that is done."""
        if self._tokens is None:
            self._tokens = tokenize(self.texts, self.tokenizer, self.max_length, self.name)

    def lengths(self) -> np.ndarray:
        """Return the tokens of each example, int64 (N,)."""
        self.prepare()
        return np.diff(self._tokens["starts"])

    def batch(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model's inputs, each int64 (B, longest of the batch), and labels int64 (B,)."""
        self.prepare()
        rows = np.asarray(indices, np.int64)
        starts = self._tokens["starts"][rows]
        lengths = self._tokens["starts"][rows + 1] - starts
        places = np.arange(lengths.max())
        filled = (places[::-1] if self.tokenizer.padding_side == "left" else places) < lengths[:, None]
        # Rows of `filled` are true in as many places as the row has tokens, so flat tokens fall into place.
        flat = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
        inputs = {"input_ids": np.full(filled.shape, self.tokenizer.pad_token_id, np.int64)}
        inputs["input_ids"][filled] = self._tokens["ids"][flat]
        inputs["attention_mask"] = filled.astype(np.int64)
        if "types" in self._tokens:
            inputs["token_type_ids"] = np.full(filled.shape, self.tokenizer.pad_token_type_id, np.int64)
            inputs["token_type_ids"][filled] = self._tokens["types"][flat]
        return {name: torch.from_numpy(value) for name, value in inputs.items()}, self.labels[rows]

    def example_keys(self) -> list[bytes]:
        """Return a hash of each example's texts, whatever tokenizer reads them."""
        return self.texts.keys()

    def eval_order(self) -> list[int]:
        """Return the examples from longest to shortest, so that batches have little padding and memory runs out first.

        Examples of one length keep their order.
        """
        return np.argsort(-self.lengths(), kind="stable").tolist()


def tokenize(
    texts: Texts, tokenizer: Any, max_length: int | None = None, name: str = "a split of texts"
) -> dict[str, np.ndarray]:
    """Return the tokens of all examples in a row.

    Returns:
        ``ids`` int32 (all tokens,), ``starts`` int64 (N + 1,), and ``types`` uint8 (all tokens,), the part of a pair
        that a token belongs to, where the tokenizer's models take it.

    Raises:
        SheetbendError: An example has no tokens; the message says ``name`` and the example's row.
    """
    # Workers are forked after this and never tokenise; without the variable the library warns of a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    limit = tokenizer.model_max_length if max_length is None else min(max_length, tokenizer.model_max_length)
    # A tokenizer that knows no limit says 10^30, which its library cannot take.
    cut = {"truncation": True, "max_length": limit} if limit < 1 << 30 else {}
    parts: dict[str, list[np.ndarray]] = {"ids": [], "types": [], "lengths": []}
    for block in texts.blocks():
        encoded = tokenizer(*block, return_attention_mask=False, **cut)
        parts["lengths"].append(np.array([len(ids) for ids in encoded["input_ids"]], np.int64))
        parts["ids"].append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        if "token_type_ids" in tokenizer.model_input_names:
            parts["types"].append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8))
    lengths = np.concatenate(parts["lengths"])
    if not lengths.all():
        # No model can answer it: there is no last token to read a class from.
        first = int(np.flatnonzero(lengths == 0)[0])
        row = first + 1 if texts.rows is None else texts.rows[first]
        words = ", ".join(repr(one[first].as_py()) for one in texts.columns)
        raise SheetbendError(f"{name}, row {row}: the tokenizer makes no tokens of {words}; leave the row out")
    tokens = {"ids": np.concatenate(parts["ids"]), "starts": np.concatenate([[0], np.cumsum(lengths)])}
    return tokens | ({"types": np.concatenate(parts["types"])} if parts["types"] else {})


class TextDataModule(TaskDataModule):
    """Tasks of texts; what all datamodules of them share. They take the tokenizer from the model."""

    gives = "texts"
    _tokenizer: Any = None
    _model_limit: int | None = None

    def attach(self, module: Any) -> None:
        """Take the tokenizer of a model of texts, and the longest text that it takes."""
        super().attach(module)
        self._tokenizer, self._model_limit = module.tokenizer, module.max_length
        self.prepared_with((self._tokenizer, self._model_limit))

    @staticmethod
    def checked_max_length(max_length: int | None) -> int | None:
        """Return ``max_length``; raise `SheetbendError` unless it is none or 2 and more."""
        if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
            raise SheetbendError(f"data.max_length is {max_length}; give a number of at least 2, or nothing")
        return max_length

    def tokenized(self, task: str, splits: Mapping[str, Texts], max_length: int | None) -> dict[str, TextSplit]:
        """Return the splits of ``task`` for the model's tokenizer.

        Raises:
            SheetbendError: A split is empty, or no model was attached.
        """
        for name, texts in splits.items():
            if not len(texts):
                raise SheetbendError(f"task {task}: its {name} split is empty; it must have examples")
        if self._tokenizer is None:
            raise SheetbendError(f"task {task}: texts need the tokenizer of a model; call attach(model) before setup")
        limits = [limit for limit in (max_length, self._model_limit) if limit is not None]
        limit = min(limits) if limits else None
        return {
            name: TextSplit(texts, self._tokenizer, limit, name=f"task {task}, its {name} split")
            for name, texts in splits.items()
        }

    def train_dataloader(self) -> DataLoader:
        """Return one loader of `TaskBatch`, tasks in turn."""
        for task in self.task_names:
            self.split(task, "train").prepare()
        return super().train_dataloader()
