"""What a run reads: which model files, adapters and data sets, where they are, and what of them is here."""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    snapshot_download,
    try_to_load_from_cache,
)

from datamodules import TaskDataModule
from datamodules.sources.downloads import Download
from datamodules.sources.hub import Hub, fetch, look_up
from datamodules.sources.quiet import quiet_libraries
from lightning_modules import LoRATasks
from lightning_modules.adapter_folders import fill_in
from lightning_modules.backbones import HubFiles, checkpoint_files
from lightning_modules.image_backbones import backbone_source
from mergers import SheetbendError
from mergers.adapters import ADAPTER_FILES
from mergers.adapters.heads import HEAD_FILE, PUBLISHED_HEADS_FILE
from mergers.adapters.hub import hub_errors, is_hub_id
from mergers.adapters.peft import CONFIG_FILE
from mergers.adapters.reachable import hub_answers

BACKBONE = "model.init_args.backbone"
ROOT = "data.init_args.root"
EVERY = "all tasks"
_AT_ONCE = 8


@dataclass(frozen=True)
class Need:
    """One thing that a run reads.

    Attributes:
        user: what reads it, such as ``backbone`` or ``task mnist``.
        place: where it is; none: it comes with installed packages, or is made.
        splits: of a data set, the splits that are read, by the names that it has for them.
        option: with which a folder can be given in its place; none if it has none of its own.
    """

    user: str
    place: Hub | HubFiles | Path | None
    splits: tuple[str, ...] = ()
    option: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it comes from the hub."""
        return isinstance(self.place, Hub | HubFiles)


@dataclass(frozen=True)
class Found:
    """What there is of something that is needed.

    Attributes:
        need: what is needed.
        size: bytes in all; none if that cannot be known without the hub.
        download: its files on the hub; none for what is not on the hub, or while the hub is not asked.
        fault: why it cannot be had; none if it is here or can be.
        absent: whether it is not here, or not whole, and the hub cannot be asked for it.
    """

    need: Need
    size: int | None = None
    download: Download | None = None
    fault: str | None = None
    absent: bool = False

    @property
    def missing(self) -> int:
        """Bytes that are to be downloaded."""
        return self.download.missing if self.download else 0


def needs(model: LoRATasks, datamodule: TaskDataModule) -> list[Need]:
    """Return what a run reads, without reading it; what several tasks share stands once.

    Raises:
        SheetbendError: A name of the configuration means nothing.
    """
    found = [Need("backbone", backbone_source(model.backbone_name), option=BACKBONE)]
    tasks = datamodule.task_names
    for option, source in (("adapters", model.adapter_source), ("heads", getattr(model, "head_source", None))):
        found += _given(option, source, tasks)
    root = ROOT if hasattr(datamodule, "root") else None
    users: dict[Hub | Path | None, dict[str, set[str]]] = {}
    for task in tasks:
        try:
            datamodule.check(task)
            sources = datamodule.sources(task)
        except SheetbendError:  # it is missing, which `datamodule.missing` says
            continue
        if not sources:
            users.setdefault(None, {}).setdefault("", set()).add(task)
        for place, split in sources.values():
            users.setdefault(place, {}).setdefault(split, set()).add(task)
    for place, splits in users.items():
        readers = [task for task in tasks if any(task in of for of in splits.values())]
        word = "task" if len(readers) == 1 else "tasks"
        found.append(Need(f"{word} {', '.join(readers)}", place, tuple(filter(None, splits)), root))
    for task, path in getattr(datamodule, "split_indices", {}).items():
        found.append(Need(f"split of {task}", Path(path).expanduser()))
    return found


def _given(option: str, source: str | dict[str, str] | None, tasks: Sequence[str]) -> Iterator[Need]:
    """Yield the adapters or heads of ``tasks``; for ``source`` see `lightning_modules.adapter_folders`."""
    if source is None:
        return
    if isinstance(source, str) and "{task}" in source:
        source = {task: fill_in(source, task) for task in tasks}
    each = source if isinstance(source, dict) else {EVERY: source}
    for task, place in each.items():
        if isinstance(source, dict) and task not in tasks:
            continue
        if is_hub_id(place):
            name, _, revision = place.partition("@")
            entry = HubFiles(name, revision or None, adapter_files)
        else:
            entry = Path(place).expanduser()
        user = f"{option if task == EVERY else option.removesuffix('s')} of {task}"
        yield Need(user, entry, option=f"model.init_args.{option}")


def adapter_files(names: Sequence[str]) -> list[str]:
    """Return the files of a PEFT adapter and its heads, or of a full checkpoint.

    Adapters are read by asking for several names at once. All that a repository has of these must be here, else it
    does not count as whole where the hub does not answer.
    """
    if CONFIG_FILE in names:
        return [name for name in ADAPTER_FILES if name in names]
    heads = [name for name in (HEAD_FILE, PUBLISHED_HEADS_FILE) if name in names]
    return sorted({*checkpoint_files(names), *fnmatch.filter(names, "model*.safetensors"), *heads})


def hub_fault() -> str | None:
    """Return why the hub cannot be asked, in words; none if it answers. One look, so that nothing is tried in vain."""
    if constants.is_offline_mode():
        return "the hub is switched off (HF_HUB_OFFLINE)"
    return None if hub_answers() else f"the hub ({constants.ENDPOINT}) cannot be reached"


def find(needed: Sequence[Need], no_hub: str | None) -> list[Found]:
    """Return what there is of all that is needed, without downloading it.

    Args:
        needed: what is needed.
        no_hub: why the hub cannot be asked; none if it can.
    """
    # Each is a few small questions to the hub, so that most of the time is waiting.
    with quiet_libraries(bars=False), ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda need: _find(need, no_hub), needed))


def _find(need: Need, no_hub: str | None) -> Found:
    try:
        if need.place is None:
            return Found(need)
        if isinstance(need.place, Path):
            return _local(need, need.place)
        if no_hub is not None:
            return _cached(need)
        download = look_up(need.place, need.splits) if isinstance(need.place, Hub) else _look_up_model(need)
        return Found(need, download.size, download)
    except SheetbendError as error:
        return Found(need, fault=f"{need.user}: {error}")


def _local(need: Need, path: Path) -> Found:
    if not path.exists():
        return Found(need, fault=f"{need.user}: {path} is not there; correct the path")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Found(need, sum(file.stat().st_size for file in files))


def _look_up_model(need: Need) -> Download:
    model, way_out = need.place, f"or give a folder: {need.option}"
    with hub_errors(str(model), model.revision, way_out):
        names = [file.rfilename for file in HfApi().model_info(model.name, revision=model.revision).siblings]
        chosen = model.choose(names)
        if not chosen:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise SheetbendError(
                f"{model} has no weights that can be read (it has {shown or 'nothing'}); give another, {way_out}"
            )
        files = snapshot_download(model.name, revision=model.revision, allow_patterns=chosen, dry_run=True)
        return Download(model.name, "model", model.revision, tuple(sorted(files, key=lambda file: file.filename)))


def _cached(need: Need) -> Found:
    """Return whether the hub's cache has what is needed."""
    if isinstance(need.place, HubFiles):
        return Found(need, absent=bool(_missing_of_model(need.place)))
    try:
        for split in need.splits:
            fetch(need.place, split)
    except SheetbendError:
        return Found(need, absent=True)
    return Found(need)


def absences(found: Sequence[Found]) -> list[str]:
    """Return what is absent and where to put it, one line for all that belongs into the same kind of place."""
    kinds: dict[tuple[str, str, str], list[Need]] = {}
    for need in [one.need for one in found if one.absent]:
        if isinstance(need.place, HubFiles):
            kind = (need.option.rpartition(".")[2], "models", f"into folders that {need.option} names")
        else:
            where = f"as <split>-*.parquet into <{ROOT}>/<task name>" if need.option else "in files that data names"
            kind = ("data", "datasets", where)
        kinds.setdefault(kind, []).append(need)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    lines = []
    for (what, folder, elsewhere), needed in kinds.items():
        names = ", ".join(_described(need) for need in needed)
        place = cache / f"{folder}--<owner>--<name>"
        lines.append(f"{what} missing: {names}; each belongs into {place}, or {elsewhere}")
    return lines


def _described(need: Need) -> str:
    """Return its name on the hub, and who needs it where that is more than its kind."""
    splits = f": {', '.join(need.splits)}" if need.splits else ""
    return need.place.name if need.option == BACKBONE else f"{need.place.name} ({need.user}{splits})"


def _missing_of_model(model: HubFiles) -> list[str]:
    """Return the files of a model that the hub's cache lacks."""

    def cached(name: str) -> Path | None:
        path = try_to_load_from_cache(model.name, name, revision=model.revision)
        return Path(path) if isinstance(path, str) else None

    try:
        tree = get_cached_repo_tree(model.name, revision=model.revision)
        names = [file.path for file in tree]
    except Exception:  # it was downloaded by other means: what is there must do
        known = next((path for name in ("config.json", CONFIG_FILE) if (path := cached(name))), None)
        names = [path.name for path in known.parent.iterdir()] if known else []
    chosen = model.choose(names)
    for index in [name for name in chosen if name.endswith(".index.json")]:
        path = cached(index)
        chosen += sorted(set(json.loads(path.read_text())["weight_map"].values())) if path else []
    return [name for name in chosen if cached(name) is None] if chosen else ["config.json"]
