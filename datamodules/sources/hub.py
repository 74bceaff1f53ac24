"""Data sets on the Hugging Face hub: which files a split has, and those files on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import DatasetCard, snapshot_download

from datamodules.sources.downloads import Download
from datamodules.sources.quiet import quiet_libraries
from mergers.adapters.hub import hub_errors
from mergers.adapters.reachable import cache_only
from mergers.errors import SheetbendError

# Where the hub keeps the parquet copy it makes of data sets that were published as scripts.
PARQUET_COPY = "refs/convert/parquet"
WAY_OUT = "or put a copy into a folder and give its parent: data.init_args.root, with <root>/<task name>"


@dataclass(frozen=True)
class Hub:
    """A data set on the hub.

    Attributes:
        name: ``org/name``.
        config: its configuration, for data sets that have several.
        revision: branch, tag or commit; ``PARQUET_COPY`` for data sets that are scripts, which are never run.
        files: the files of each split, {split: pattern}, where the data set itself does not say it or says too much;
            a split that is not named here cannot be read then.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = field(default=None, hash=False)

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"hub data set {self.name}" + (f" ({self.config})" if self.config else "")


def fetch(hub: Hub, split: str) -> Path:
    """Return the local folder that has the files of one split, downloaded if they are not there yet.

    Raises:
        SheetbendError: They cannot be had, or the data set has no such split.
    """
    return Path(_snapshot(hub, _patterns(hub, [split])))


def look_up(hub: Hub, splits: Sequence[str]) -> Download:
    """Return the files of ``splits`` and which are on this machine; asks the hub, and loads no more than its card.

    Raises:
        SheetbendError: The hub cannot be asked, or the data set has no such split.
    """
    files = _snapshot(hub, _patterns(hub, splits), dry_run=True)
    return Download(hub.name, "dataset", hub.revision, tuple(sorted(files, key=lambda file: file.filename)))


def split_patterns(folder: Path, config: str | None, where: str) -> dict[str, list[str]] | None:
    """Return which files the card of a data set names for each split; none if it names none.

    Args:
        folder: holds README.md, or not.
        config: configuration; none takes the default or only one.
        where: what messages call the data set.

    Raises:
        SheetbendError: There is no such configuration, or several to choose from.
    """
    try:
        return _split_patterns(card(folder).get("configs") or [], config, where)
    except (TypeError, KeyError, AttributeError):  # other people's YAML
        raise SheetbendError(f"{where}: its README.md says nothing sensible of configs; correct it") from None


def _split_patterns(given: list[dict], config: str | None, where: str) -> dict[str, list[str]] | None:
    configs = {one["config_name"]: one for one in given if "config_name" in one}
    configs = {name: one for name, one in configs.items() if one.get("data_files")}
    if not configs:
        return None
    if config is None:
        defaults = [name for name, one in configs.items() if one.get("default") or name == "default"]
        if not defaults and len(configs) > 1:
            raise SheetbendError(f"{where} has several configurations: {', '.join(configs)}; name one")
        config = (defaults or list(configs))[0]
    if config not in configs:
        raise SheetbendError(f"{where} has no configuration {config!r}; it has {', '.join(configs)}")
    files = configs[config]["data_files"]
    if isinstance(files, str) or all(isinstance(one, str) for one in files):
        return {"train": [files] if isinstance(files, str) else list(files)}
    paths = {one["split"]: one["path"] for one in files}
    return {split: [path] if isinstance(path, str) else list(path) for split, path in paths.items()}


def card(folder: Path) -> dict:
    """Return the metadata at the head of a data set's README.md; empty if it has none."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # other people's YAML: no metadata then
        return {}


def _patterns(hub: Hub, splits: Sequence[str]) -> list[str] | None:
    """Return patterns of the files of ``splits`` and the card; none: all files."""
    if hub.files is not None:
        known = {split: [pattern] for split, pattern in hub.files.items()}
    else:
        known = split_patterns(Path(_snapshot(hub, ["README.md"])), hub.config, str(hub))
        if known is None:
            return [f"{hub.config}/*", "README.md"] if hub.config else None
    missing = [split for split in splits if split not in known]
    if missing:
        raise SheetbendError(f"{hub} has no split {missing[0]!r}; it has {', '.join(known)}")
    return [*(pattern for split in splits for pattern in known[split]), "README.md"]


def _snapshot(hub: Hub, patterns: list[str] | None, dry_run: bool = False):
    with hub_errors(str(hub), hub.revision, WAY_OUT), quiet_libraries(bars=not dry_run):
        return snapshot_download(
            hub.name,
            repo_type="dataset",
            revision=hub.revision,
            allow_patterns=patterns,
            ignore_patterns=["*.py"],
            dry_run=dry_run,
            local_files_only=cache_only(),
        )
