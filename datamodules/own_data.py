"""What datamodules of one's own data share: checks of a configuration, reading its tables, leaving repeats out."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from datamodules.base import SPLITS, TaskDataModule
from datamodules.sources.hub import WAY_OUT
from datamodules.sources.tables import Hub, read_table
from datamodules.splits import first_of_each
from mergers.errors import SheetbendError, did_you_mean


def check_overlap(overlap: str) -> str:
    """Return ``overlap``; raise `SheetbendError` unless it is a word that is known."""
    if overlap not in ("refuse", "report"):
        raise SheetbendError(f"data.overlap is {overlap!r}; give refuse or report")
    return overlap


def check_hub(where: str, hub: str | None, config: str | None, revision: str | None) -> None:
    """Raise `SheetbendError` where a configuration or revision is named without the hub data set it belongs to."""
    if hub is None and (config is not None or revision is not None):
        raise SheetbendError(f"{where}: config and revision are of a hub data set; name its hub, or leave them out")


def check_splits(where: str, splits: Collection[str] | None, names: str) -> None:
    """Raise `SheetbendError` unless ``splits`` names train, and besides it val and test at most.

    Args:
        where: what the message calls the task.
        splits: as given.
        names: what is to be said of each split, in words.
    """
    if splits is None or "train" not in splits or not set(splits) <= set(SPLITS):
        raise SheetbendError(
            f"{where}: splits is {splits}; say {names}, and val and test where they are there, for example "
            "{train: train, val: validation, test: test}"
        )


def check_one_file(where: str, path: str | Path, splits: Collection[str] | None) -> None:
    """Raise `SheetbendError` where splits are named of a single file."""
    if splits is not None:
        raise SheetbendError(f"{where}: {path} is one file, so splits has no meaning; leave one of them out")


def check_shares(where: str, val: float, test: float) -> None:
    """Raise `SheetbendError` unless val and test are shares that leave some of train; nan is none."""
    if not (val > 0 and test > 0 and val + test < 1):
        raise SheetbendError(f"{where}: val {val} and test {test} are shares of train; give two that leave some")


def read_own_table(task: str, source: Hub | Path, split: str) -> Dataset:
    """Return `read_table`, whose errors name the way out that a task of one's own has: it has no ``root``."""
    try:
        return read_table(source, split)
    except SheetbendError as error:
        instead = f"or put a copy into a folder and name it: path of task {task}, in the place of hub"
        raise SheetbendError(str(error).replace(WAY_OUT, instead)) from error.__cause__


def named_classes(class_names: Sequence[str] | Mapping[str | int, str | None]) -> tuple[str, ...]:
    """Return the classes that a configuration names: those of a list, or what the labels of a map mean, each once."""
    if not isinstance(class_names, Mapping):
        return tuple(class_names)
    return tuple(name for name in dict.fromkeys(class_names.values()) if name is not None)


def label_positions(
    labels: Sequence[str],
    class_names: Sequence[str] | Mapping[str | int, str | None] | None,
    classes: Sequence[str],
    where: Callable[[int], str],
) -> np.ndarray:
    """Return the position in ``classes`` of each label's class, int64 (N,), -1 for those to be left out.

    A map says what labels mean. Else labels are names of classes; or, where none of them is one and no class is called
    by a number, whole numbers are positions.

    Args:
        labels: N of them, as they are written; an empty one is missing.
        class_names: as the configuration gives them.
        classes: the task's.
        where: returns what messages call the place of label number i.

    Raises:
        SheetbendError: a label is missing, or means no class.
    """
    known = {name: code for code, name in enumerate(classes)}
    words = list(classes)
    if isinstance(class_names, Mapping):
        known = {str(word): -1 if name is None else known[name] for word, name in class_names.items()}
        words = list(known)
    elif not any(label in known for label in labels) and not any(name.lstrip("-").isdigit() for name in classes):
        known |= {str(code): code for code in range(len(classes))}
    for row, label in enumerate(labels):
        if not label and "" not in known:
            raise SheetbendError(f"{where(row)}: there is no label; fill it in, or leave the row out")
        if label not in known:
            positions = len(known) > len(words) and label.lstrip("-").isdigit()
            outside = f"outside the range 0 to {len(classes) - 1} of" if positions else "none of"
            raise SheetbendError(
                f"{where(row)}: label {label!r} is {outside} the classes {', '.join(words)}"
                f"{did_you_mean(label, words)}; correct it, or say in a map of class_names what it means (null leaves "
                "it out)"
            )
    return np.array([known[label] for label in labels], np.int64)


def without_repeats(data: TaskDataModule, task: str, keys: Sequence[Hashable], what: str) -> np.ndarray:
    """Return the rows of examples that repeat no earlier one, int64, ascending; the caveats say how many do.

    To be called of what is cut into splits, since chance would put an example that stands twice into two of them.

    Args:
        data: the datamodule, which keeps the caveats.
        task: name of the task.
        keys: one an example; equal keys are one example.
        what: how many of these do what, in words.
    """
    rows = first_of_each(keys)
    if len(rows) < len(keys):
        data.note(task, f"{len(keys) - len(rows)} of {len(keys)} {what} and are left out.")
    return rows
