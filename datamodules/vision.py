"""The published image classification tasks, from the hub, a local copy of it, their first files or image folders."""

from pathlib import Path

from datamodules.image_tasks import ImageDataModule, Part, relabelled, whole
from datamodules.sources.image_folder import has_class_folders, read_image_folder
from datamodules.sources.image_source import ImageSource, source_of_table
from datamodules.sources.layouts import LAYOUTS, find_layout
from datamodules.sources.tables import Hub, read_table
from datamodules.splits import divided, validation_of_test
from datamodules.tasks import Task
from datamodules.vision_tasks import VISION_TASKS, VisionTask
from mergers.errors import SheetbendError

# Of a task without a layout of its original files, where its source has no splits.
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


class VisionDataModule(ImageDataModule):
    """The twenty image tasks of the papers on model merging; `datamodules.vision_tasks` has their facts.

    Labels are matched by class name. Validation is the data set's own where the source has it, else 20 % of its test
    set, and test means the other 80 %; the caveats of a run say which. Data sets are taken as they are published:
    pictures that stand in two of their splits are counted in the caveats.

    Args:
        tasks: see `TaskDataModule`.
        root: folder with one local copy a task, <root>/<task>: the hub's parquet files, the files in which the data set
            was first published (a root of torchvision will do), or folders {train,val,test}/<class>. None: the hub.
        split_indices: for tasks without a validation split, files with an order of their test examples (.pt, .npy,
            .json or .txt); the first 20 % of it are for validation. Tasks that are not named draw theirs at random, by
            their name alone.
        image_cache_gb: see `ImageDataModule`.
        batch_size: see `TaskDataModule`.
        eval_batch_size: see `TaskDataModule`.
        batches_per_epoch: see `TaskDataModule`.
        num_workers: see `TaskDataModule`.
        seed: see `TaskDataModule`.
    """

    overlap = "report"

    def __init__(
        self,
        tasks: list[str],
        root: str | None = None,
        split_indices: dict[str, str] | None = None,
        image_cache_gb: float = 20.0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        self.root = None if root is None else Path(root).expanduser()
        self.split_indices = dict(split_indices or {})
        super().__init__(tasks, image_cache_gb, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)
        for name in self.split_indices:
            if name not in tasks:
                raise SheetbendError(f"data.split_indices names {name!r}, which is none of data.tasks; take it out")

    @classmethod
    def known_tasks(cls) -> dict[str, Task]:
        """Return all tasks, by name."""
        return {name: entry.task for name, entry in VISION_TASKS.items()}

    def declaration(self, task: str) -> VisionTask:
        """Return all that is declared of ``task``."""
        return VISION_TASKS[task]

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if a local copy or an index file is named that is not there."""
        self._place(VISION_TASKS[task])
        path = self.split_indices.get(task)
        if path is not None and not Path(path).expanduser().is_file():
            raise SheetbendError(f"task {task}: index file {path} is not there; correct data.split_indices")

    def sources(self, task: str) -> dict[str, tuple[Hub | Path, str]]:
        """Return what each split of ``task`` is read from: a place, and the split's name there."""
        entry = VISION_TASKS[task]
        _, place = self._place(entry)
        return {split: (place, name) for split, name in entry.splits.items() if name is not None}

    def parts(self, task: str) -> dict[str, Part]:
        """Read the sources of ``task``, with its own labels, and divide them into splits."""
        entry = VISION_TASKS[task]
        kind, place = self._place(entry)
        found = _read(entry, kind, place)
        sources = {
            split: relabelled(source, entry.labels_of(source.class_names), entry.task.class_names, f"task {task}")
            for split, source in found.items()
        }
        if entry.caveat:
            self.note(task, entry.caveat.removeprefix(f"{task}: "))
        for split, count in entry.counts.items():
            if split in sources and len(sources[split]) != count:
                self.deviation(
                    task, f"its {split} split has {len(sources[split])} examples; the published one has {count}."
                )
        if "all" in sources:
            return self._divide_whole(entry, sources["all"])
        for split in ("train", "test"):
            if split not in sources:
                raise SheetbendError(f"task {task}: {place} has no {split} split; complete the copy")
        return self._with_validation(entry, sources)

    def _with_validation(self, entry: VisionTask, sources: dict[str, ImageSource]) -> dict[str, Part]:
        task, parts = entry.task.name, whole(sources)
        path = self.split_indices.get(task)
        if "val" in sources:
            if path is not None:
                raise SheetbendError(
                    f"task {task}: its source has a validation split of its own; take it out of data.split_indices"
                )
            self.note(task, f"validation is the data set's own split of {len(sources['val'])}.")
            return parts
        val, test = validation_of_test(task, len(sources["test"]), path)
        chosen = "drawn at random" if path is None else f"the first of {Path(path).name}"
        self.note(
            task, f"validation is 20 % of the test set ({len(val)} examples, {chosen}), test the other {len(test)}."
        )
        return {"train": parts["train"], "val": Part(sources["test"], val), "test": Part(sources["test"], test)}

    def _divide_whole(self, entry: VisionTask, source: ImageSource) -> dict[str, Part]:
        task = entry.task.name
        if task in self.split_indices:
            raise SheetbendError(
                f"task {task}: its source has no test split for data.split_indices; give lists of the published splits"
            )
        shares = LAYOUTS[entry.layout].shares if entry.layout in LAYOUTS else SHARES
        rows = divided(task, source.labels, shares)
        self.note(
            task,
            "its source has no splits, so they are drawn at random, class by class: "
            f"{', '.join(f'{split} {len(taken)}' for split, taken in rows.items())}; they are not the published ones.",
        )
        return {split: Part(source, taken) for split, taken in rows.items()}

    def _place(self, entry: VisionTask) -> tuple[str, Hub | Path]:
        """Return how the source of a task is read, and where it is: the hub, or what stands below the root."""
        if self.root is None:
            return "table", entry.hub
        if entry.layout in LAYOUTS:
            found = find_layout(entry.layout, self.root)
            if found is not None:
                return "layout", found
        folder = self.root / entry.task.name
        if not folder.is_dir():
            raise SheetbendError(
                f"task {entry.task.name}: {folder} is not there; put the files of {entry.hub}, the original ones, or "
                "{train,test}/<class>/* there, or leave data.root out to read the hub"
            )
        return ("folder" if has_class_folders(folder) else "table"), folder


def _read(entry: VisionTask, kind: str, place: Hub | Path) -> dict[str, ImageSource]:
    if kind == "layout":
        return LAYOUTS[entry.layout].read(place, entry.task.class_names)
    if kind == "folder":
        return read_image_folder(place)
    sources = {}
    for split, name in entry.splits.items():
        if name is not None:
            where = f"{place if isinstance(place, Hub) else f'folder {place}'} ({name})"
            sources[split] = source_of_table(read_table(place, name), entry.image_column, entry.label_column, where)
    return sources
