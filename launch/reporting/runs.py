"""The runs of a report, read from their folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from callbacks.curves import Curves
from callbacks.results import Results
from launch.reporting.settings import flat, without_seed
from launch.yaml_text import load_yaml
from mergers.errors import SheetbendError

RESULTS = "results.json"
# What every search leaves beside its results.
CANDIDATES = "candidates.json"
# Folders of further results in that of a run, and what merges in them are.
PARTS = {"searches": "searched", "adaptations": "learned"}
_MOST_BYTES = 200_000_000


@dataclass(frozen=True)
class Run:
    """The results of one folder.

    Attributes:
        folder: where they are.
        results: what was measured.
        config: what was set; empty where that is not known.
        history: the validations over training, or over an adaptation.
        parts: results of searches and adaptations in this run's folder.
        kind: what its merges are: ``run``, or of a search or an adaptation ``searched`` or ``learned``.
        unread: parts that have no results yet.
        origins: the part that each variant comes from which is not the run's own.
        starts: what each learned merge started from; both are variants.
    """

    folder: Path
    results: Results
    config: dict[str, Any] = field(default_factory=dict)
    history: Curves = field(default_factory=Curves)
    parts: tuple["Run", ...] = ()
    kind: str = "run"
    unread: tuple[str, ...] = ()
    origins: dict[str, "Run"] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def seed(self) -> int | None:
        """The seed, where it is known."""
        found = (self.results.meta.get("seed"), self.config.get("seed_everything"))
        return next((seed for seed in found if isinstance(seed, int) and not isinstance(seed, bool)), None)

    @cached_property
    def settings(self) -> dict[str, str]:
        """What decides about the results, but for the seed; of each merge, what it is."""
        # What the merges of a search are is what each seed has found, and no setting.
        given = () if self.kind == "searched" and self.config else self.results.descriptions.items()
        own = {name: text for name, text in given if name not in self.origins}
        merges = {f"merge {name}": without_seed(text, self.seed) for name, text in own.items()}
        return flat(self.config, self.seed, adaptation=self.kind == "learned") | merges

    def source(self, variant: str) -> "Run":
        """Return the part that a variant comes from, or this run."""
        return self.origins.get(variant, self)

    def fingerprint(self, task: str, split: str | None = None) -> str | None:
        """Return the fingerprint of a task's split, of the one that was measured by default."""
        prints = self.results.meta.get("splits") or {}
        return (prints.get(task) or {}).get(split or self.results.split)

    def option(self, name: str) -> Any:
        """Return a setting of the configuration by its dotted name, classes' arguments without ``init_args``."""
        value: Any = self.config
        for key in name.split("."):
            value = value.get("init_args", value) if isinstance(value, dict) else None
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of folders, each a run or a folder with runs in it, and what was left out, in words.

    Raises:
        SheetbendError: a folder holds none, is given twice, or holds what cannot be read.
    """
    found: dict[Path, Path] = {}
    unfinished: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise SheetbendError(
                f"{folder} {'is no folder' if folder.exists() else 'does not exist'}; give run folders"
            )
        inside = [folder] if _has_results(folder) else [one for one in _children(folder) if _has_results(one)]
        if not inside:
            raise SheetbendError(
                f"{folder} holds no {RESULTS}, nor does a folder in it; give folders of runs that have been tested"
            )
        if inside != [folder]:
            unfinished += [f"{one} has no {RESULTS} yet" for one in _children(folder) if _began(one)]
        for one in inside:
            if one.resolve() in found:
                raise SheetbendError(f"{one} is given twice{_beside(one, found[one.resolve()])}; give each run once")
            found[one.resolve()] = one
    if not found:
        raise SheetbendError("no run is given; give folders of runs that have been tested")
    return [read_run(one) for one in found.values()], unfinished


def _beside(one: Path, other: Path) -> str:
    return "" if one == other else f", also as {other}"


def _children(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _has_results(folder: Path) -> bool:
    return (folder / RESULTS).is_file() or any(True for _ in _part_folders(folder, tested=True))


def _began(folder: Path) -> bool:
    """Return whether this looks like a run that has not been tested."""
    names = ("config.yaml", "checkpoints", "history.csv")
    return not _has_results(folder) and any((folder / name).exists() for name in names)


def _part_folders(folder: Path, tested: bool) -> Iterator[tuple[str, Path]]:
    for place, kind in PARTS.items():
        if (folder / place).is_dir():
            yield from ((kind, one) for one in _children(folder / place) if (one / RESULTS).is_file() is tested)


def read_run(folder: Path) -> Run:
    """Return the run of a folder with its parts; of a folder with parts alone, the first of them with the others.

    Raises:
        SheetbendError: a file cannot be read.
    """
    parts = [_read(one, kind) for kind, one in _part_folders(folder, tested=True)]
    unread = tuple(f"{one.parent.name}/{one.name}" for _, one in _part_folders(folder, tested=False))
    if not (folder / RESULTS).is_file():
        first, *others = parts
        return replace(first, parts=tuple(others), unread=unread)
    own = _read(folder)
    # A search leaves no configuration of its own; its merges apart, that of the run is its.
    known = tuple(part if part.config else replace(part, config=own.config) for part in parts)
    return replace(own, parts=known, unread=unread)


def _read(folder: Path, kind: str | None = None) -> Run:
    """Return the run of a folder without its parts; of a folder that is given by itself, it says which kind it is."""
    path = folder / RESULTS
    results = Results.from_json(_text(path), str(path))
    if not results.scores:
        raise SheetbendError(f"{path} holds no scores; run the test again to write it")
    history = folder / "history.csv"
    curves = Curves.from_csv(_text(history), str(history)) if history.is_file() else Curves()
    if kind is None:
        learned = results.adapts or results.starts
        kind = "searched" if (folder / CANDIDATES).is_file() else "learned" if learned else "run"
    starts = results.starts if kind == "learned" else {}
    return Run(folder, results, _config(folder), curves, kind=kind, starts=starts)


def _config(folder: Path) -> dict[str, Any]:
    """Return the configuration that the results come from; that of a later test stands in a file of its own."""
    for name in ("test_config.yaml", "config.yaml"):
        path = folder / name
        if path.is_file():
            try:
                content = load_yaml(_text(path))
            except (yaml.YAMLError, RecursionError, ValueError) as error:
                raise SheetbendError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
            if not isinstance(content, dict):
                raise SheetbendError(f"{path} is no mapping of settings; run the test again to write it")
            return content
    return {}


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise SheetbendError(f"{path} has {path.stat().st_size:,} bytes, which no run writes; give another folder")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SheetbendError(f"{path} is no text in UTF-8; run the test again to write it") from None
