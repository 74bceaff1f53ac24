"""What a run reads: which model files, adapters and data sets, where they are, and what of them is here."""

import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Sequence
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
from lightning_modules.backbones import locate
from lightning_modules.image_backbones import OPEN_CLIP
from mergers import SheetbendError
from mergers.adapters.heads import HEAD_FILE, PUBLISHED_HEADS_FILE
from mergers.adapters.hub import hub_errors, is_hub_id
from mergers.adapters.peft import CONFIG_FILE, PICKLED_WEIGHTS_FILE, WEIGHTS_FILE
from mergers.adapters.reachable import hub_answers

BACKBONE = "model.init_args.backbone"
EVERY = "all tasks"
OPEN_CLIP_HUB = "hf-hub:"
# Best first; a repository often has the same weights in several forms.
WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)
OPEN_CLIP_WEIGHTS = (
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"),
)
ADAPTER = (CONFIG_FILE, WEIGHTS_FILE, PICKLED_WEIGHTS_FILE, HEAD_FILE, PUBLISHED_HEADS_FILE)
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")
_AT_ONCE = 8


@dataclass(frozen=True)
class Model:
    """A model, adapter or head on the hub.

    Attributes:
        name: ``org/name``.
        revision: branch, tag or commit; none: the main branch.
        choose: returns those of a repository's files that a run reads; none of them if it is not what it should be.
        option: the option with which a folder can be given in its place.
    """

    name: str
    revision: str | None
    choose: Callable[[Sequence[str]], list[str]]
    option: str

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"hub model {self.name}" + (f" ({self.revision})" if self.revision else "")


@dataclass(frozen=True)
class Need:
    """One thing that a run reads.

    Attributes:
        user: what reads it, such as ``backbone`` or ``task mnist``.
        place: where it is.
        splits: of a data set, the splits that are read, by the names that it has for them.
    """

    user: str
    place: Hub | Model | Path
    splits: tuple[str, ...] = ()

    @property
    def on_hub(self) -> bool:
        """Whether it comes from the hub."""
        return not isinstance(self.place, Path)


@dataclass(frozen=True)
class Found:
    """What there is of something that is needed.

    Attributes:
        need: what is needed.
        size: bytes in all; none if that cannot be known without the hub.
        download: its files on the hub; none for what is not on the hub, or while the hub is not asked.
        fault: why it cannot be had; none if it is here or can be.
    """

    need: Need
    size: int | None = None
    download: Download | None = None
    fault: str | None = None

    @property
    def missing(self) -> int:
        """Bytes that are to be downloaded."""
        return self.download.missing if self.download else 0


def needs(model: LoRATasks, datamodule: TaskDataModule) -> list[Need]:
    """Return what a run reads, without reading it; what several tasks share stands once.

    Raises:
        SheetbendError: A name of the configuration means nothing.
    """
    found = [Need("backbone", _backbone(model.backbone_name))]
    tasks = datamodule.task_names
    for option, source in (("adapters", model.adapter_source), ("heads", getattr(model, "head_source", None))):
        found += _given(option, source, tasks)
    users: dict[Hub | Path, dict[str, set[str]]] = {}
    for task in tasks:
        try:
            sources = datamodule.sources(task)
        except SheetbendError:  # it is missing, which `datamodule.missing` says
            continue
        for place, split in sources.values():
            users.setdefault(place, {}).setdefault(split, set()).add(task)
    for place, splits in users.items():
        readers = [task for task in tasks if any(task in of for of in splits.values())]
        word = "task" if len(readers) == 1 else "tasks"
        found.append(Need(f"{word} {', '.join(readers)}", place, tuple(splits)))
    for task, path in getattr(datamodule, "split_indices", {}).items():
        found.append(Need(f"split of {task}", Path(path).expanduser()))
    return found


def _backbone(name: str) -> Model | Path:
    if name.startswith(OPEN_CLIP):
        return _open_clip(name)
    place = locate(name)
    return Path(place) if Path(place).is_dir() else Model(name, None, checkpoint_files, BACKBONE)


def _open_clip(name: str) -> Model | Path:
    """Return where an open_clip model is; see `lightning_modules.open_clip_backbone` for names."""
    from open_clip.pretrained import get_pretrained_cfg

    given = name.removeprefix(OPEN_CLIP)
    if given.startswith(OPEN_CLIP_HUB):
        return Model(given.removeprefix(OPEN_CLIP_HUB), None, open_clip_files, BACKBONE)
    architecture, _, weights = given.partition("/")
    published = (get_pretrained_cfg(architecture, weights) or {}).get("hf_hub", "").strip("/")
    if not published:
        return Path(given if Path(given).is_dir() else weights or given).expanduser()
    owner, repository, *file = published.split("/")
    wanted = "/".join(file)
    choose = (lambda names: [one for one in names if one == wanted]) if wanted else open_clip_files
    return Model(f"{owner}/{repository}", None, choose, BACKBONE)


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
            entry = Model(name, revision or None, adapter_files, f"model.init_args.{option}")
        else:
            entry = Path(place).expanduser()
        yield Need(f"{option if task == EVERY else option.removesuffix('s')} of {task}", entry)


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """Return the files of a model that are read: settings, tokenizer and one set of weights, safetensors if there is.

    >>> checkpoint_files(["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"])
    ['config.json', 'model.safetensors']
    """
    top = [name for name in names if "/" not in name]
    weights = next((found for form in WEIGHTS if (found := [name for name in top if form.fullmatch(name)])), [])
    beside = [name for name in top if name.endswith(_BESIDE_WEIGHTS) and not name.endswith(".index.json")]
    return sorted({*beside, *weights}) if weights else []


# Adapters and open_clip's models are read by asking for several names at once. All that a repository has of these must
# be here, else it does not count as whole where the hub does not answer.


def open_clip_files(names: Sequence[str]) -> list[str]:
    """Return the weights of an open_clip model, and its settings and tokenizer where they are not the package's."""
    weights = next((found for form in OPEN_CLIP_WEIGHTS if (found := [name for name in names if name in form])), [])
    beside = [name for name in names if "/" not in name and name.endswith(_BESIDE_WEIGHTS)]
    return sorted({*weights, *beside}) if weights else []


def adapter_files(names: Sequence[str]) -> list[str]:
    """Return the files of a PEFT adapter and its heads, or of a full checkpoint."""
    if CONFIG_FILE in names:
        return [name for name in ADAPTER if name in names]
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
        if isinstance(need.place, Path):
            return _local(need, need.place)
        if no_hub is not None:
            return _cached(need)
        download = look_up(need.place, need.splits) if isinstance(need.place, Hub) else _look_up_model(need.place)
        return Found(need, download.size, download)
    except SheetbendError as error:
        return Found(need, fault=f"{need.user}: {error}")


def _local(need: Need, path: Path) -> Found:
    if not path.exists():
        return Found(need, fault=f"{need.user}: {path} is not there; correct the path")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Found(need, sum(file.stat().st_size for file in files))


def _look_up_model(model: Model) -> Download:
    with hub_errors(str(model), model.revision, _way_out(model)):
        names = [file.rfilename for file in HfApi().model_info(model.name, revision=model.revision).siblings]
        chosen = _chosen(model, names)
        files = snapshot_download(model.name, revision=model.revision, allow_patterns=chosen, dry_run=True)
        return Download(model.name, "model", model.revision, tuple(sorted(files, key=lambda file: file.filename)))


def _chosen(model: Model, names: Sequence[str]) -> list[str]:
    chosen = model.choose(names)
    if not chosen:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise SheetbendError(
            f"{model} has no weights that can be read (it has {shown or 'nothing'}); give another, {_way_out(model)}"
        )
    return chosen


def _way_out(model: Model) -> str:
    return f"or give a folder: {model.option}"


def _cached(need: Need) -> Found:
    """Return whether the hub's cache has what is needed; the fault says where else a copy may be put."""
    place = need.place
    if isinstance(place, Model):
        if not _missing_of_model(place):
            return Found(need)
        kind, elsewhere = "models", f"into a folder that {place.option} names"
    else:
        try:
            for split in need.splits:
                fetch(place, split)
            return Found(need)
        except SheetbendError:
            files = ", ".join(f"{split}-*.parquet" for split in need.splits)
            kind, elsewhere = "datasets", f"as {files} into <data.init_args.root>/<task name>"
    cache = Path(constants.HF_HUB_CACHE).expanduser() / f"{kind}--{place.name.replace('/', '--')}"
    return Found(need, fault=f"{need.user}: {place.name} is missing; it belongs into {cache}, or {elsewhere}")


def _missing_of_model(model: Model) -> list[str]:
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
