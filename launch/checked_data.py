"""Whether the data of a run are what they should be, and a record of it, so that it is looked at once."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets

from datamodules import Task, TaskDataModule
from datamodules.base import SPLITS
from datamodules.image_tasks import ImageDataModule
from datamodules.sources.hub import Hub, fetch
from lightning_modules import LoRATasks
from mergers import SheetbendError
from mergers.files import atomic_write, cache_folder

_FORMAT = 2
# Arguments of a datamodule that change nothing of what is read.
UNIMPORTANT = ("tasks", "batch_size", "eval_batch_size", "batches_per_epoch", "num_workers", "seed", "image_cache_gb")


@dataclass
class Checked:
    """What a look at all data of one task has found.

    Attributes:
        task: its name.
        counts: examples of each split.
        classes: number of classes; none for answers in words.
        fingerprints: hash of each split, as runs write it.
        notes: what a reader of results should know.
        faults: what is not as it should be.
        recorded: whether this was found before, and nothing has changed since.
    """

    task: str
    counts: dict[str, int] = field(default_factory=dict)
    classes: int | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    recorded: bool = False


def check_task(datamodule: TaskDataModule, task: Task) -> Checked:
    """Load a task as a run does: labels, overlaps, counts and hashes; after ``datamodule.attach``."""
    try:
        datamodule.ready(task)
    except SheetbendError as error:
        message = str(error)
        return Checked(task.name, faults=[message if task.name in message else f"task {task.name}: {message}"])
    deviations = datamodule.deviations(task.name)
    return Checked(
        task=task.name,
        counts={name: len(datamodule.split(task.name, name)) for name in SPLITS},
        classes=len(task.class_names) if isinstance(task, Task) else None,
        fingerprints=datamodule.fingerprints()[task.name],
        notes=[line for line in datamodule.notes(task.name) if line not in deviations],
        faults=[f"task {line.rstrip('.')}; complete the copy (a run takes it and says so)" for line in deviations],
    )


def fill_images(datamodule: ImageDataModule, task: Task) -> None:
    """Decode all pictures of a task into the cache, as the model takes them; after `check_task`.

    Raises:
        SheetbendError: A picture cannot be decoded.
    """
    for name in SPLITS:
        datamodule.split(task.name, name).images.prepare()


class Record:
    """What was found of a task, kept on disk for as long as its files, its declaration and the settings are the same.

    Args:
        datamodule: reads the task.
        settings: the configuration of the datamodule.
        model: takes the examples as its tokenizer makes them, and as long as it says.
    """

    def __init__(self, datamodule: TaskDataModule, settings: Mapping[str, Any], model: LoRATasks):
        self._datamodule = datamodule
        given = settings.get("init_args") or {}
        arguments = {name: value for name, value in given.items() if name not in UNIMPORTANT}
        files = sorted({path for path in _files_named(arguments) if path.is_file()})
        self._common = [
            _FORMAT,
            datasets.__version__,
            settings.get("class_path"),
            arguments,
            model.backbone_name,
            getattr(model, "max_length", None),
            code_of(type(datamodule)),
            [_stamp(path) for path in files],
        ]

    def read(self, task: Task) -> Checked | None:
        """Return what was found; none if that is not known or may have changed."""
        path = self._path(task)
        try:
            return None if path is None else Checked(**json.loads(path.read_text()), recorded=True)
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def write(self, task: Task, found: Checked) -> None:
        """Keep what was found, unless something is wrong; a folder that cannot be written keeps nothing."""
        path = self._path(task)
        if path is None or found.faults:
            return
        content = {name: value for name, value in asdict(found).items() if name != "recorded"}
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
        except OSError:
            return

    def _path(self, task: Task) -> Path | None:
        sources = self._datamodule.sources(task.name)
        if not sources:
            return None
        try:
            stamps = [[ours, _source_stamp(place, split), split] for ours, (place, split) in sources.items()]
        except (OSError, SheetbendError):
            return None
        declared = [repr(task), repr(self._datamodule.declaration(task.name))]
        key = json.dumps([*self._common, declared, stamps], sort_keys=True, default=str)
        return cache_folder("prepared") / f"{task.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def code_of(kind: type[TaskDataModule]) -> list[str]:
    """Return a hash of each file in which a datamodule's class, or one that it is made of, is written."""
    classes = [one for one in kind.__mro__ if issubclass(one, TaskDataModule)]
    paths = dict.fromkeys(path for one in classes if (path := _file_of(one)))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _file_of(kind: type) -> Path | None:
    try:
        return Path(inspect.getfile(kind))
    except (TypeError, OSError):  # it was typed into an interpreter
        return None


def _source_stamp(place: Hub | Path, split: str) -> Any:
    """Return what changes when the files of a source do."""
    if isinstance(place, Hub):  # the folder of one commit
        return [place.name, place.config, fetch(place, split).name]
    paths = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> list[Any]:
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def _files_named(value: Any) -> Iterator[Path]:
    """Yield everything in some settings that may be a path."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _files_named(inner)
    elif isinstance(value, str) and len(value) < 1000:
        yield Path(value).expanduser()
