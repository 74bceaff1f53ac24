"""One's own pictures by configuration alone: folders of them, tables, or hub data sets with columns named."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.image_tasks import ImageDataModule, Part
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
from datamodules.sources.image_folder import has_class_folders, read_class_folders, read_image_folder
from datamodules.sources.image_source import ImageSource, source_of_table
from datamodules.sources.tables import Hub
from datamodules.splits import divided
from datamodules.tasks import Task
from mergers.errors import SheetbendError


@dataclass(frozen=True)
class ImageSet:
    """Where the pictures of one task are, and what their labels mean.

    Attributes:
        path: a folder <class>/* or {train,val,test}/<class>/*; or a table of pictures: a .parquet file, or a folder
            with such files as the hub keeps them.
        hub: in the place of ``path``, a data set on the hub, ``org/name``.
        config: its configuration on the hub, where it has several.
        revision: its branch, tag or commit on the hub.
        image: of a table, the column of the pictures.
        label: of a table, the column of the labels: words, whole numbers, or named classes.
        splits: what train, val and test are called on the hub or in the folder. Without val or test, these are cut from
            train. None, for folders of pictures and single files alone: those that are there.
        class_names: the classes, or a map from the labels as they are written (the names of folders) to classes, null
            for those to be left out. Of a list, labels are names; or whole numbers (also as text), which are positions
            in it, unless a class is called by a number. None: the labels themselves; of numbers, all from 0 on.
        templates: prompts with ``{}`` for the class name; none: those of the datamodule.
        val: share of train that is cut off for val, where val is not given; every class gives its share.
        test: the same for test.
        label_space: tasks that name the same one share their classes in the joint label space.
    """

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    splits: dict[str, str] | None = None
    class_names: list[str] | dict[str | int, str | None] | None = None
    templates: list[str] | None = None
    val: float = 0.1
    test: float = 0.2
    label_space: str | None = None

    @property
    def place(self) -> Hub | Path:
        """Return where the pictures are."""
        return Hub(self.hub, self.config, self.revision) if self.hub is not None else Path(self.path).expanduser()

    @property
    def in_folders(self) -> bool:
        """Return whether the pictures are files in folders of their classes, not rows of a table."""
        if self.hub is not None or not self.place.is_dir():
            return False
        return has_class_folders(self.place) if self.splits is None else has_class_folders(self._folder("train"))

    def _folder(self, split: str) -> Path:
        return self.place / self.splits[split]

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if the fields do not fit together, or nothing is there; opens no file."""
        where = f"task {task}"
        check_hub(where, self.hub, self.config, self.revision)
        if (self.path is None) == (self.hub is None):
            raise SheetbendError(f"{where}: path is {self.path} and hub is {self.hub}; give one of them")
        if self.path is not None and not self.place.exists():
            raise SheetbendError(f"{where}: {self.place} is not there; check the path")
        if self.splits is not None:
            check_splits(where, self.splits, "what train is called")
        single = self.path is not None and self.place.is_file()
        if single:
            check_one_file(where, self.place, self.splits)
        if self.splits is None and not single and not self.in_folders:
            raise SheetbendError(
                f"{where}: {self.place} holds no folders of pictures (<class>/* or train/<class>/*); for a table say "
                "what its splits are called, for example splits: {train: train, test: test}"
            )
        check_shares(where, self.val, self.test)

    def read(self, task: str) -> dict[str, ImageSource]:
        """Return the splits that are there, with the source's own labels; one that is not split is ``train``.

        Raises:
            SheetbendError: there is no train, or something cannot be read.
        """
        if self.in_folders:
            if self.splits is not None:
                return {split: read_class_folders(self._folder(split)) for split in self.splits}
            found = read_image_folder(self.place)
            found = {"train": found["all"]} if "all" in found else found
            if "train" not in found:
                raise SheetbendError(
                    f"task {task}: {self.place} has folders of {' and '.join(found)}, but none of train; add "
                    "train/<class>/*"
                )
            return found
        names = self.splits or {"train": "train"}
        sources = {}
        for split, name in names.items():
            where = f"task {task}, {self.place}" + ("" if self.splits is None else f", split {name}")
            table = read_own_table(task, self.place, name)
            sources[split] = source_of_table(table, self.image, self.label, where)
        return sources

    def classes(self, source: ImageSource | None) -> tuple[str, ...]:
        """Return the task's classes; where they are not given, those of ``source``, its training split."""
        if self.class_names is not None:
            return named_classes(self.class_names)
        if source.class_names is not None:
            return source.class_names
        return tuple(str(number) for number in range(int(source.labels.max(initial=-1)) + 1))


class ImageFolderDataModule(ImageDataModule):
    """Tasks of one's own pictures, or of any image data set on the hub with its columns named.

    Prompts may be left out for models without a text tower.

    Args:
        images: for each task, where its pictures are; or one folder, in which each folder is a task.
        tasks: those of them that are used; none: all.
        templates: prompts with ``{}`` for the class name, of the tasks that name none of their own.
        overlap: whether a picture in two splits is an error (refuse), or counted in the caveats of results (report).
        image_cache_gb: see `ImageDataModule`.
        batch_size: see `TaskDataModule`.
        eval_batch_size: see `TaskDataModule`.
        batches_per_epoch: see `TaskDataModule`.
        num_workers: see `TaskDataModule`.
        seed: of the order of training examples; which pictures are cut off for val and test depends on the task's name
            and the pictures alone.
    """

    def __init__(
        self,
        images: dict[str, ImageSet] | str,
        tasks: list[str] | None = None,
        templates: list[str] | None = None,
        overlap: Literal["refuse", "report"] = "refuse",
        image_cache_gb: float = 20.0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        self.overlap = check_overlap(overlap)
        if not images:
            raise SheetbendError("data.images is empty; declare a task there: {name: {path: FOLDER}}")
        self.images = _sets_in(Path(images).expanduser()) if isinstance(images, str) else dict(images)
        self.templates = tuple(templates or ())
        super().__init__(
            list(self.images) if tasks is None else tasks,
            image_cache_gb,
            batch_size,
            eval_batch_size,
            batches_per_epoch,
            num_workers,
            seed,
        )

    def task_table(self) -> dict[str, Task]:
        """Return the tasks in use; where classes are not given, folders are listed, and the labels of tables read."""
        tasks = {}
        for name in self.task_names:
            self.check(name)
            one = self.images[name]
            source = None if one.class_names is not None else one.read(name)["train"]
            templates = self.templates if one.templates is None else tuple(one.templates)
            tasks[name] = Task(name, one.classes(source), templates, label_set=one.label_space)
        return tasks

    def known_names(self) -> list[str]:
        """Return the names of all sets of pictures; reads nothing."""
        return list(self.images)

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if what is said of ``task`` does not fit together, or nothing is there."""
        self.images[task].check(task)

    def sources(self, task: str) -> dict[str, tuple[Hub | Path, str]]:
        """Return what each split that is named is read from, and its name there; else the whole place, as train.

        Refuses what `check` does.
        """
        self.check(task)
        one = self.images[task]
        return {split: (one.place, name) for split, name in (one.splits or {"train": "train"}).items()}

    def parts(self, task: str) -> dict[str, Part]:
        """Read the pictures of ``task``, with its own labels; cut from train what is not there."""
        one = self.images[task]
        classes = self.task(task).class_names
        parts = {split: _labelled(one, source, classes) for split, source in one.read(task).items()}
        shares = {split: getattr(one, split) for split in ("val", "test") if split not in parts}
        if shares:
            source, pool = parts["train"].source, parts["train"].rows
            keys = [key.tobytes() for key in self.open_images(source, f"task {task}").keys[pool]]
            pool = pool[without_repeats(self, task, keys, "pictures repeat another")]
            rows = divided(task, source.labels[pool], {"train": 1 - sum(shares.values()), **shares})
            parts |= {split: Part(source, pool[taken]) for split, taken in rows.items()}
        return parts


def _sets_in(folder: Path) -> dict[str, ImageSet]:
    """Return one set for each folder in ``folder``."""
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise SheetbendError(f"data.images {folder}: no folders of tasks are there; put <task>/<class>/* below it")
    return {path.name: ImageSet(str(path)) for path in found}


def _labelled(one: ImageSet, source: ImageSource, classes: tuple[str, ...]) -> Part:
    """Return the pictures that have a class, with the task's labels."""
    used, first, position = np.unique(source.labels, return_index=True, return_inverse=True)
    written = [str(label) if source.class_names is None else source.class_names[label] for label in used]
    new = label_positions(written, one.class_names, classes, lambda number: source.where(first[number]))[position]
    # Those to be left out keep some label, and are none of the rows.
    kept = replace(source, labels=np.maximum(new, 0), class_names=classes)
    return Part(kept, np.flatnonzero(new >= 0))
