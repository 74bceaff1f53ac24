"""A search from its first candidate to the best settings."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from callbacks import MergeCallback
from callbacks.event_files import write_candidates
from callbacks.plots import png
from callbacks.results import counted
from callbacks.search_plots import search_plot
from launch.searching.records import TABLE, Candidate, Records, score_of
from launch.searching.settings import Range, Search, Values, changed
from launch.searching.strategies import Strategy, strategy_of
from launch.searching.sweep import Sweeper
from lightning_modules import LoRATasks
from lightning_modules.metrics import JOINT_K
from mergers import Merger, SheetbendError
from mergers.errors import did_you_mean
from mergers.files import atomic_write

FOLDER = "searches"
BEST = "best.yaml"


class Run:
    """One search at work.

    Args:
        search: the settings.
        mergers: by name, as they stand in the configuration.
        sweeper: measures candidates.
        records: what has been measured before.
        metrics: what the validation records, and what may decide.
        seed: of optuna's proposals.
    """

    def __init__(
        self,
        search: Search,
        mergers: Mapping[str, Merger],
        sweeper: Sweeper,
        records: Records,
        metrics: list[str],
        seed: int,
    ):
        self.search, self.mergers, self.sweeper, self.records, self.metrics = search, mergers, sweeper, records, metrics
        self.spaces = search.spaces(mergers)
        self.strategies: dict[str, Strategy] = {
            name: strategy_of(search, space, mergers[name], name, records.folder, seed)
            for name, space in self.spaces.items()
        }
        self.room = search.at_once or sweeper.room()

    def go(self) -> dict[str, Candidate]:
        """Measure until no strategy asks for more; return the best candidate of each merge."""
        say(self.plan())
        if not self.records.references:
            self.records.add([], self.sweeper.references())
        while batch := self.next_batch():
            candidates = {candidate.key: candidate for _, candidate, _ in batch}
            measured = self.sweeper.measure(list(candidates.values()), self.merger_of)
            self.records.add(measured)
            self.records.write_table(self.metrics)
            for strategy, candidate, values in batch:
                strategy.tell(values, self.score(candidate))
            best = max(self.records.records.values(), key=lambda record: self.score(record.candidate)).candidate
            say(
                f"{counted(len(self.records.records), 'candidate')} measured, best {self.search.metric} "
                f"{100 * self.score(best):.2f}: {best.merge} {shown(best.values)}"
            )
        return self.best()

    def next_batch(self) -> list[tuple[Strategy, Candidate, Values]]:
        """Return what is to be measured next; what has been measured is told at once."""
        batch: list[tuple[Strategy, Candidate, Values]] = []
        asking = True
        while asking and len(batch) < self.room:
            asking = False
            for name, strategy in self.strategies.items():
                for values in strategy.ask(self.room - len(batch)):
                    asking = True
                    candidate = Candidate(name, values, str(changed(self.mergers[name], values)))
                    if candidate in self.records:
                        strategy.tell(values, self.score(candidate))
                    else:
                        batch.append((strategy, candidate, values))
        return batch

    def score(self, candidate: Candidate) -> float:
        """Return the number that decides."""
        return score_of(self.records.results(candidate), candidate.merge, self.search.metric)

    def merger_of(self, candidate: Candidate) -> Merger:
        """Return the merge with the candidate's settings."""
        return changed(self.mergers[candidate.merge], candidate.values)

    def best(self) -> dict[str, Candidate]:
        """Return the best candidate of each merge, the first of equals."""
        found: dict[str, Candidate] = {}
        for record in self.records.records.values():
            candidate = record.candidate
            if candidate.merge in self.mergers and (
                candidate.merge not in found or self.score(candidate) > self.score(found[candidate.merge])
            ):
                found[candidate.merge] = candidate
        return {name: found[name] for name in self.mergers if name in found}

    def plan(self) -> str:
        """Say what is ahead."""
        lines = [
            f"search {self.search.label}: by {self.search.metric} on validation data, up to "
            f"{counted(self.room, 'candidate')} a sweep ({self.sweeper.bytes_each / 1e6:,.1f} MB each)"
        ]
        for name, space in self.spaces.items():
            over = ", ".join(f"{setting} {span(values)}" for setting, values in space.items())
            lines.append(f"  {name}: {over or 'as it stands'}")
        return "\n".join(lines)


def span(values: list[Any] | Range) -> str:
    """Return values in few words.

    >>> span([0.1, 0.2, 0.3]), span(Range(0.1, 1.0, log=True)), span(["full", "knots"])
    ('0.1 to 0.3 (3 values)', '0.1 to 1 (log)', 'full, knots')
    """
    if isinstance(values, Range):
        how = f"step {values.step:g}" if values.step else "log" if values.log else "any"
        return f"{values.low:g} to {values.high:g} ({how})"
    if len(values) > 2 and all(isinstance(value, int | float) for value in values):
        return f"{min(values):g} to {max(values):g} ({len(values)} values)"
    return ", ".join(map(str, values))


def shown(values: Values) -> str:
    """Return settings as they are read at a glance.

    >>> shown({"method.density": 0.3, "space": "knots"})
    'method.density=0.3 space=knots'
    """
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())


def metrics_of(model: LoRATasks) -> list[str]:
    """Return what validation will record that may decide."""
    spaces = getattr(model.evaluator, "joint", {})
    joint = [f"{space}_hits@{k}" for space, labels in spaces.items() for k in JOINT_K if k < len(labels)]
    return ["normalised", "mean", *joint]


def check_metric(search: Search, known: list[str]) -> None:
    """Raise `SheetbendError` if what decides is not recorded."""
    if search.metric not in known:
        close = did_you_mean(search.metric, known)
        raise SheetbendError(f"search.metric {search.metric!r} is not recorded{close}; known: {', '.join(known)}")


def searchable(callbacks: Sequence[Callback]) -> tuple[MergeCallback, dict[str, Merger]]:
    """Return the MergeCallback among ``callbacks`` and the merges of it that have settings.

    Raises:
        SheetbendError: there is none.
    """
    found = next((one for one in callbacks if isinstance(one, MergeCallback)), None)
    mergers = {name: one for name, one in (found.mergers if found else {}).items() if isinstance(one, Merger)}
    if not mergers:
        raise SheetbendError("trainer.callbacks has no merge to search; give callbacks.MergeCallback with mergers")
    return found, mergers


def identity_of(sweeper: Sweeper, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the scores of a search depend on beside the settings of merges."""
    prints = getattr(sweeper.data, "fingerprints", dict)()
    return {
        "adapters": {adapter.name: adapter.content_hash() for adapter in sweeper.adapters},
        "data": {task: splits.get("val") for task, splits in prints.items()},
        "model": sweeper.model.base_name,
        "trainer.limit_val_batches": options["trainer"]["limit_val_batches"],
        "trainer.precision": options["trainer"]["precision"],
    }


def finish(run: Run, folder: Path) -> dict[str, Merger]:
    """Show and write what was found; return the best merges."""
    best = run.best()
    mergers = {name: run.merger_of(candidate) for name, candidate in best.items()}
    show(table_of(run, best))
    _write_all(run, mergers, folder)
    say(f"{folder}: {TABLE}, {BEST} (a configuration of these merges), plots/search_*.png")
    return mergers


@rank_zero_only
def _write_all(run: Run, mergers: Mapping[str, Merger], folder: Path) -> None:
    write_best(folder / BEST, mergers)
    candidates = [record.candidate for record in run.records.records.values()]
    for name in mergers:
        points = [(one.values, run.score(one)) for one in candidates if one.merge == name and one.values]
        if len(points) > 1:
            with atomic_write(folder / "plots" / f"search_{name}.png") as temporary:
                temporary.write_bytes(png(search_plot(name, points, run.search.metric)))
    rows = []
    for one in candidates:
        results = run.records.results(one)
        rows.append((one.merge, one.values, {name: score_of(results, one.merge, name) for name in run.metrics}))
    write_candidates(folder / "tensorboard" / "candidates", rows)


def table_of(run: Run, best: Mapping[str, Candidate]) -> Table:
    """Return the best settings of each merge as a table."""
    table = Table(title=f"Best settings by {run.search.metric} on validation data, in %", title_justify="left")
    for heading, side in (("merge", "left"), ("settings", "left"), (run.search.metric, "right"), ("tried", "right")):
        table.add_column(heading, justify=side)
    for name, candidate in best.items():
        tried = sum(record.candidate.merge == name for record in run.records.records.values())
        table.add_row(name, shown(candidate.values) or "-", f"{100 * run.score(candidate):.2f}", str(tried))
    return table


def write_best(path: Path, mergers: Mapping[str, Merger]) -> None:
    """Write the best merges as a configuration that other subcommands read."""
    callback = {
        "class_path": "callbacks.MergeCallback",
        "init_args": {"mergers": {name: configuration(merger) for name, merger in mergers.items()}},
    }
    with atomic_write(path) as temporary:
        text = yaml.safe_dump({"trainer": {"callbacks": [callback]}}, sort_keys=False, width=120)
        temporary.write_text(text, encoding="utf-8")


def configuration(part: Any) -> Any:
    """Return a merge, or a step of one, as a configuration has it: what is not as by default.

    >>> from mergers import Ties
    >>> configuration(Merger("knots", Ties(density=0.3), coefficients=0.6))["method"]
    {'class_path': 'mergers.Ties', 'init_args': {'density': 0.3}}
    """
    if isinstance(part, list | tuple):
        return [configuration(one) for one in part]
    if not is_dataclass(part):
        return part
    given = {
        field.name: configuration(getattr(part, field.name))
        for field in fields(part)
        if isinstance(part, Merger) or getattr(part, field.name) != _default(field)
    }
    if isinstance(part, Merger):
        return {name: value for name, value in given.items() if value not in ([], None)}
    return {"class_path": f"mergers.{type(part).__name__}", **({"init_args": given} if given else {})}


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@rank_zero_only
def say(text: str) -> None:
    """Print a line on the first process."""
    print(text, flush=True)


@rank_zero_only
def show(table: Table) -> None:
    """Print a table on the first process."""
    Console().print(table)
