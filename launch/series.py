"""One command several times with other settings, in turn and in this process: once a seed, say."""

import gc
import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launch import interrupts
from launch.locks import alone
from mergers.errors import SheetbendError
from mergers.files import atomic_write

if TYPE_CHECKING:  # `sheetbend merge` needs no Lightning
    from callbacks.results import Results

FORMAT = 1
FILE = "series.json"
RESULTS = "results.json"
# What a result does not depend on, or what every run of a series has of its own.
UNIMPORTANT = (
    "config",
    "data.init_args.eval_batch_size",
    "data.init_args.num_workers",
    "overwrite",
    "seeds",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
)
T = TypeVar("T")


def check_seeds(seeds: Sequence[int], called: str = "seeds") -> None:
    """Raise `SheetbendError` unless these are seeds, each once.

    Args:
        seeds: as given.
        called: how the setting is named in messages.
    """
    if not seeds:
        raise SheetbendError(f"{called} is empty; name some, such as --seeds 0 1 2")
    for index, seed in enumerate(seeds):
        if not 0 <= seed < 2**32:
            raise SheetbendError(f"{called} has {seed}; give numbers from 0 to {2**32 - 1}")
        if seed in seeds[:index]:
            raise SheetbendError(f"{called} has {seed} twice; name it once")


@dataclass(frozen=True)
class Entry:
    """One run of a series.

    Attributes:
        label: what lines on the screen and messages call it, such as ``seed 1``.
        folder: what it writes to.
        settings: what it sets in the common configuration, by dotted key.
        words: what stands for ``{key}`` in every string of the configuration.
    """

    label: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def configuration(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of this run.

        >>> entry = Entry("seed 1", Path("x/seed-1"), {"seed_everything": 1}, {"seed": "1"})
        >>> entry.configuration({"model": {"adapters": "y/seed-{seed}"}, "seeds": [0, 1]})["model"]
        {'adapters': 'y/seed-1'}
        """
        own = filled(deepcopy(dict(common)), self.words)
        own["seeds"] = None
        for key, value in {**self.settings, "trainer.default_root_dir": str(self.folder)}.items():
            *parents, last = key.split(".")
            inner = own
            for parent in parents:
                if not isinstance(inner.get(parent), dict):
                    inner[parent] = {}
                inner = inner[parent]
            inner[last] = value
        return own


def filled(value: Any, words: Mapping[str, str]) -> Any:
    """Return ``value`` with words in place of ``{key}`` in all its strings, those of keys of mappings left out.

    >>> filled({"merge": ["a/{seed}", "{task}", 3]}, {"seed": "1"})
    {'merge': ['a/1', '{task}', 3]}
    """
    if isinstance(value, dict):
        return {key: filled(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, words) for inner in value]
    if isinstance(value, str):
        for key, word in words.items():
            value = value.replace(f"{{{key}}}", word)
    return value


def in_turn(
    entries: Sequence[Entry],
    run: Callable[[Entry], T],
    finished: Callable[[Entry], T | None] = lambda entry: None,
    say: Callable[[str], None] | None = None,
) -> list[T]:
    """Run all entries, with a line before each; return what came of them.

    Args:
        entries: in their order.
        run: runs one.
        finished: returns what came of one that need not be run again; none where it must be.
        say: shows a line; by default it is printed.

    Raises:
        SheetbendError: one failed by the user's fault; those before it are kept.
        SystemExit: one was interrupted, or failed otherwise; those before it are kept.
    """
    say = say or partial(print, flush=True)
    done: list[T] = []
    for number, entry in enumerate(entries, 1):
        line = f"{entry.label} ({number} of {len(entries)}): {entry.folder}"
        outcome = finished(entry)
        if outcome is not None:
            say(f"{line} is finished and unchanged; --overwrite true repeats it")
            done.append(outcome)
            continue
        say(line)
        try:
            done.append(run(entry))
        except SheetbendError as error:
            raise SheetbendError(f"{entry.label}: {error}") from None
        except KeyboardInterrupt:
            interrupts.stop(f"\ninterrupted in {_stopped(entries, number)}; the same command goes on from there")
        except SystemExit:
            say(f"stopped in {_stopped(entries, number)}")
            raise
    return done


def _stopped(entries: Sequence[Entry], number: int) -> str:
    kept = ", ".join(entry.label for entry in entries[: number - 1])
    return f"{entries[number - 1].label} ({number} of {len(entries)})" + (f"; finished and kept: {kept}" * bool(kept))


class Finished:
    """Which runs of series below a folder have ended, with what, and by which settings.

    A run counts as finished while its configuration, the adapters and merges that it starts from, and the results
    that it wrote are what they were.

    Args:
        root: the folder, which holds `FILE`.
        command: such as ``fit``.
    """

    def __init__(self, root: Path, command: str):
        self.path, self.command = root / FILE, command

    def folder(self, entry: Entry, configuration: Mapping[str, Any]) -> Path | None:
        """Return the folder with the results of a finished run; none where it must be run (again)."""
        record = self._read().get(self._key(entry, configuration))
        if record is None:
            return None
        folder = self.path.parent / record["folder"]
        same = record["inputs"] == inputs_key(self.command, configuration)
        return folder if same and record["results"] == _content_key(folder / RESULTS) else None

    def add(self, entry: Entry, configuration: Mapping[str, Any], folder: Path) -> None:
        """Note that a run has ended, with its results in ``folder``."""
        results = _content_key(folder / RESULTS)
        if results is None:
            return
        record = {
            "folder": folder.relative_to(self.path.parent).as_posix(),
            "inputs": inputs_key(self.command, configuration),
            "results": results,
        }
        content = {"format": FORMAT, "finished": {**self._read(), self._key(entry, configuration): record}}
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _key(self, entry: Entry, configuration: Mapping[str, Any]) -> str:
        return f"{self.command} {entry.folder.name} {settings_key(configuration)}"

    def _read(self) -> dict[str, dict[str, str]]:
        # What cannot be read says of no run that it is finished; running one again is safe.
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            found = content["finished"] if content["format"] == FORMAT else {}
            names = ("folder", "inputs", "results")
            return {key: {name: str(one[name]) for name in names} for key, one in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def settings_key(configuration: Mapping[str, Any]) -> str:
    """Return a hash of all settings that results may depend on."""
    flat = {key: value for key, value in _flat(configuration) if key not in UNIMPORTANT}
    return _hash(json.dumps(flat, sort_keys=True, default=str).encode())


def inputs_key(command: str, configuration: Mapping[str, Any]) -> str:
    """Return a hash of names, sizes and times of the files of adapters and merges that a run starts from."""
    files = {
        file
        for place in _inputs(command, configuration)
        for file in ([place] if place.is_file() else place.rglob("*"))
        if file.is_file()
    }
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    return _hash(json.dumps(stats).encode())


def _inputs(command: str, configuration: Mapping[str, Any]) -> Iterator[Path]:
    named = {
        place: [value for key, value in _flat(configuration) if place in key.split(".") and isinstance(value, str)]
        for place in ("adapters", "mergers")
    }
    if command != "fit" and not named["adapters"]:
        yield Path(configuration["trainer"]["default_root_dir"]) / "adapters"
    for name in (*named["adapters"], *named["mergers"]):
        pattern = glob.escape(str(Path(name).expanduser())).replace("{task}", "*")
        yield from map(Path, glob.glob(pattern))  # noqa: PTH207  those of Path begin at a folder


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list) and value:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _content_key(path: Path) -> str | None:
    return _hash(path.read_bytes()) if path.is_file() else None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What came of one run of a subcommand of `launch.lightning_cli`.

    Attributes:
        entry: which run.
        folder: of its results.
        results: what it measured last; none where it measured nothing.
    """

    entry: Entry
    folder: Path
    results: "Results | None"

    @property
    def written(self) -> bool:
        """Whether the folder holds these results; ``validate`` writes none, and may find those of a test there."""
        path = self.folder / RESULTS
        return self.results is not None and path.is_file() and path.read_text("utf-8") == self.results.to_json()


def run_series(command: str, configuration: Mapping[str, Any], entries: Sequence[Entry], root: Path) -> list[Outcome]:
    """Run a subcommand of `launch.lightning_cli` once an entry; what is finished and unchanged is not run again.

    Args:
        command: such as ``fit``.
        configuration: what all runs have in common, as plain values; its ``overwrite`` repeats what is finished.
        entries: the runs, with folders below ``root``.
        root: keeps `FILE`, which says what is finished.

    Raises:
        SheetbendError: a run failed by the user's fault; the message begins with its label.
        SystemExit: a run was interrupted.
    """
    from callbacks import ResultsCallback
    from callbacks.results import Results
    from launch.lightning_cli import SheetbendCLI  # it imports this module

    finished = Finished(root, command)

    def run(entry: Entry) -> Outcome:
        own = entry.configuration(configuration)
        done = SheetbendCLI({"subcommand": command, command: deepcopy(own)})
        shown = [one.results for one in done.trainer.callbacks if isinstance(one, ResultsCallback)]
        outcome = Outcome(entry, done.output, next(iter(shown), None))
        if outcome.written:
            finished.add(entry, own, outcome.folder)
        del done
        gc.collect()  # of models and trainers, which refer to each other
        return outcome

    def earlier(entry: Entry) -> Outcome | None:
        folder = finished.folder(entry, entry.configuration(configuration))
        if folder is None or configuration.get("overwrite"):
            return None
        path = folder / RESULTS
        return Outcome(entry, folder, Results.from_json(path.read_text(encoding="utf-8"), str(path)))

    with alone(root):
        return in_turn(entries, run, earlier)
