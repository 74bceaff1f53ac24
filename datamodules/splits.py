"""How examples are divided into training, validation and test: by seeds that depend on names, or by published files.

What is divided should hold no example twice, since chance would put it into two splits: `first_of_each`.
"""

import json
import pickle
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.dtypes import (
    Int8DType,
    Int16DType,
    Int32DType,
    Int64DType,
    UInt8DType,
    UInt16DType,
    UInt32DType,
    UInt64DType,
)

from mergers.errors import SheetbendError
from mergers.seeding import derive_seed

INTEGERS = (Int8DType, Int16DType, Int32DType, Int64DType, UInt8DType, UInt16DType, UInt32DType, UInt64DType)

# Of a test set that is published without a validation set; the first of an index file, else drawn at random.
VALIDATION_SHARE = 0.2


def validation_of_test(task: str, count: int, index_file: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Divide a test set into a validation set of ``int(0.2 * count)`` examples and the test set that is left.

    Args:
        task: its name, which alone the random choice depends on.
        count: examples in the published test set.
        index_file: an order of these examples; its first are the validation set. None: a random order.

    Returns:
        The rows of the validation and of the test set, int64, each in ascending order.

    Raises:
        SheetbendError: the file is no order of ``count`` examples, or one of the sets would be empty.
    """
    if index_file is None:
        order = np.random.default_rng(derive_seed("split", task)).permutation(count)
    else:
        order = read_index_file(index_file, task, count)
    cut = int(VALIDATION_SHARE * count)
    if cut < 1:
        raise SheetbendError(
            f"task {task}: of {count} test examples 20 % for validation are none; give at least 5, or a split val"
        )
    return np.sort(order[:cut]), np.sort(order[cut:])


def read_index_file(path: str | Path, task: str, count: int) -> np.ndarray:
    """Return an order of ``count`` examples, int64 (count,).

    Args:
        path: .pt (a tensor, or numpy's array as in KnOTS's ``*_shuffled_idxs.pt``; nothing else is unpickled), .npy,
            .json (a list) or .txt (numbers between blanks).
        task: name for messages.
        count: examples in the split.

    Raises:
        SheetbendError: it is not there, or is no order of so many examples.
    """
    path = Path(path).expanduser()
    where = f"task {task}: index file {path}"
    if not path.is_file():
        raise SheetbendError(f"{where}: there is no such file; correct split_indices, or leave it out")
    try:
        values = np.asarray(_READERS[path.suffix](path))
    except KeyError:
        raise SheetbendError(f"{where}: {path.suffix or 'no suffix'} is unknown; give {', '.join(_READERS)}") from None
    except pickle.UnpicklingError:
        raise SheetbendError(
            f"{where}: it is damaged, or holds more than an array of whole numbers, which is not unpickled; "
            "save them as .npy"
        ) from None
    except Exception as error:  # numpy, json and torch raise what they like for damaged files
        raise SheetbendError(f"{where} cannot be read ({' '.join(str(error).split())}); fetch it again") from None
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise SheetbendError(
            f"{where} holds {values.dtype} of shape {values.shape}; a list of whole numbers is needed, one an example"
        )
    if len(values) != count:
        raise SheetbendError(
            f"{where} has {len(values)} indices, but the split has {count} examples; give the file of this data set"
        )
    outside = values[(values < 0) | (values >= count)]
    if len(outside):
        raise SheetbendError(f"{where}: index {outside[0]} is outside the range 0 to {count - 1}; mend the file")
    numbers, times = np.unique(values, return_counts=True)
    if len(numbers) != count:
        raise SheetbendError(f"{where}: index {numbers[times > 1][0]} stands twice; mend the file")
    return values.astype(np.int64)


def _torch_file(path: Path) -> np.ndarray:
    # Arrays of integers and what makes them, under the name of numpy 1 too; none of it runs code of the file.
    reconstruct = np.zeros(1).__reduce__()[0]
    allowed = [
        np.ndarray,
        np.dtype,
        *INTEGERS,
        reconstruct,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
    ]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a bare pickle, which is refused
        return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {
    ".pt": _torch_file,
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".json": lambda path: json.loads(path.read_text("utf-8")),
    ".txt": lambda path: [int(word) for word in path.read_text("utf-8").split()],
}


def first_of_each(keys: Iterable[Hashable]) -> np.ndarray:
    """Return the rows of the first example of each key, int64, in ascending order.

    >>> first_of_each("abac").tolist()
    [0, 1, 3]
    """
    first: dict[Hashable, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return np.array(list(first.values()), np.int64)


def divided(
    name: str, labels: Sequence[int] | np.ndarray, shares: Mapping[str, float], shuffled: bool = False
) -> dict[str, np.ndarray]:
    """Divide examples at random, class by class, so that each split has its share of every class.

    Args:
        name: what the random choice depends on, together with the labels.
        labels: (N,).
        shares: share of each split, in the order in which they take their examples; together 1.
        shuffled: rows come in a random order too, not in ascending order.

    Returns:
        For each split its rows, int64.

    Raises:
        SheetbendError: a split gets nothing.

    >>> {split: len(rows) for split, rows in divided("x", [0] * 10 + [1] * 20, {"train": 0.7, "test": 0.3}).items()}
    {'train': 21, 'test': 9}
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(derive_seed("split", name))
    taken: dict[str, list[np.ndarray]] = {split: [] for split in shares}
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        bounds = np.round(np.cumsum([0, *shares.values()]) * len(members)).astype(int)
        for split, start, stop in zip(shares, bounds, bounds[1:], strict=False):
            taken[split].append(members[start:stop])
    order = generator.permutation if shuffled else np.sort
    rows = {split: order(np.concatenate(parts)) for split, parts in taken.items() if parts}
    for split, share in shares.items():
        if not len(rows.get(split, ())):
            raise SheetbendError(
                f"task {name}: {share:.0%} of {len(labels)} examples, class by class, are none for its {split} split; "
                "give more examples or a larger share"
            )
    return rows


def grouped(name: str, groups: Sequence, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Divide examples at random, whole groups at a time, into splits of about the given shares.

    Args:
        name: what the random choice depends on, together with the groups.
        groups: the group of each example, (N,).
        shares: share of each split; together 1.

    Returns:
        For each split its rows, int64, in ascending order.

    Raises:
        SheetbendError: a split gets nothing.

    >>> rows = grouped("x", ["a", "a", "b", "c", "c", "d", "e", "f"], {"train": 0.5, "test": 0.5})
    >>> sorted(len(one) for one in rows.values())
    [4, 4]
    """
    members: dict = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = np.random.default_rng(derive_seed("groups", name)).permutation(len(members))
    each, taken = list(members.values()), {split: [] for split in shares}
    for number in order:
        # To the split that lacks the largest part of its share.
        wanted = min(shares, key=lambda split: len(taken[split]) / shares[split])
        taken[wanted].extend(each[number])
    for split, rows in taken.items():
        if not rows:
            raise SheetbendError(
                f"task {name}: {len(members)} groups are too few for {len(shares)} splits, and {split} gets none; "
                "give more groups, or a file for each split"
            )
    return {split: np.sort(np.array(rows, np.int64)) for split, rows in taken.items()}
