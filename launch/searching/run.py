"""A search from its first candidate to the best settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from rich.table import Table

from callbacks import MergeCallback
from callbacks.event_files import write_candidates
from callbacks.plots import png
from callbacks.results import counted
from callbacks.search_plots import search_plot
from launch.commands.merge import settings_of as plain_settings
from launch.commands.screen import console, say, show, size
from launch.searching.records import TABLE, Candidate, Record, Records
from launch.searching.settings import WHOLE, Range, Search, Space, Values, changed, readable, text_of
from launch.searching.strategies import Strategy, strategy_of
from launch.searching.sweep import MOST, Sweeper
from lightning_modules import LoRATasks
from lightning_modules.metrics import JOINT_K
from mergers import Merger, SheetbendError
from mergers.errors import did_you_mean
from mergers.files import atomic_write

FOLDER = "searches"
BEST = "best.yaml"
EVENTS = "candidates"


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
            name: strategy_of(search, space, mergers[name], name, records.folder, seed, records.identity)
            for name, space in self.spaces.items()
        }
        self.candidates: dict[tuple[str, str], Candidate] = {}
        self.earlier = set(records.records)  # measured by an interrupted search, and not yet asked for in this one
        every = [form for name, merger in mergers.items() for form in forms(merger, self.spaces[name])]
        self.bytes_each = max(map(sweeper.bytes_of, every))
        self.memory = sweeper.room(self.bytes_each)
        self.room = search.at_once or min(self.memory, MOST)

    def go(self) -> dict[str, Candidate]:
        """Measure until no strategy asks for more; return the best candidate of each merge."""
        say(self.plan())
        if not self.records.references:
            self.records.add([], self.sweeper.references())
        while batch := self.next_batch():
            candidates = {one.key: one for _, one, _ in batch if one not in self.records}
            measured = self.sweeper.sweep(list(candidates.values()), self.merger_of) if candidates else []
            if measured:
                self.records.add(measured)
                self.records.write_table(self.metrics)
            for strategy, candidate, values in batch:
                self.tell(strategy, candidate, values)
            for record in measured:
                if record.failed:
                    say(f"passed over: {record.candidate.merge} {shown(record.candidate.values)}: {record.failed}")
            if measured:
                say(self.progress())
        self.records.write_table(self.metrics)  # it may be older than what was read, if the search was killed
        waiting = sum(strategy.elsewhere() for strategy in self.strategies.values())
        if waiting:
            say(f"{counted(waiting, 'trial')} of the study are still under way elsewhere; the best so far is taken")
        return self.best()

    def next_batch(self) -> list[tuple[Strategy, Candidate, Values]]:
        """Return what is to be measured next; what has been measured is told at once.

        What an interrupted search has measured takes its place in a batch as it did then, so that the candidates after
        it come in the same order. A strategy that remembers what it was told knows that itself.
        """
        self.hear()
        batch: list[tuple[Strategy, Candidate, Values]] = []
        asking = True
        while asking and len(batch) < self.room:
            asking = False
            for name, strategy in self.strategies.items():
                for values in strategy.ask(self.room - len(batch)):
                    asking = True
                    try:
                        candidate = self.candidate(name, values)
                    except SheetbendError as error:  # settings that exclude each other
                        say(f"passed over: {name} {shown(values)}: {error}")
                        strategy.tell(values, -math.inf)
                        continue
                    replayed = candidate.key in self.earlier and not strategy.remembers
                    self.earlier.discard(candidate.key)
                    if candidate in self.records and not replayed:
                        self.tell(strategy, candidate, values)
                    else:
                        batch.append((strategy, candidate, values))
        return batch

    def hear(self) -> None:
        """Take up what other machines have measured."""
        found = [
            Record.of(self.candidate(name, values), measured)
            for name, strategy in self.strategies.items()
            for values, measured in strategy.heard()
        ]
        new = [record for record in found if record.candidate not in self.records]
        if new:
            self.records.add(new)
            self.records.write_table(self.metrics)

    def tell(self, strategy: Strategy, candidate: Candidate, values: Values) -> None:
        """Give a strategy the score of what it asked for."""
        record = self.records.records[candidate.key]
        strategy.tell(values, self.score(candidate), record.measured())

    def candidate(self, name: str, values: Values) -> Candidate:
        """Return a merge with these values; it is one of this search from now on.

        Raises:
            SheetbendError: they exclude each other.
        """
        merger = changed(self.mergers[name], values)
        candidate = Candidate(name, values, str(merger), configuration(merger))
        return self.candidates.setdefault(candidate.key, candidate)

    def score(self, candidate: Candidate) -> float:
        """Return the number that decides, minus infinity of a merge that failed."""
        return self.records.score(candidate, self.search.metric)

    def merger_of(self, candidate: Candidate) -> Merger:
        """Return the merge with the candidate's settings."""
        return changed(self.mergers[candidate.merge], candidate.values)

    def found(self, name: str) -> list[Candidate]:
        """Return the measured candidates of one merge, in their order; what another search asked for is none."""
        return [one for one in self.candidates.values() if one.merge == name and one in self.records]

    def best(self) -> dict[str, Candidate]:
        """Return the best candidate of each merge, the first of equals.

        Raises:
            SheetbendError: no candidate of a merge could be merged.
        """
        best = {name: max(found, key=self.score) for name in self.mergers if (found := self.found(name))}
        for name, candidate in best.items():
            if self.score(candidate) == -math.inf:
                raise SheetbendError(f"no candidate of {name} could be merged: {self.records.failure(candidate)}")
        return best

    def progress(self) -> str:
        """Say how far the search is."""
        measured = counted(len(self.records.records), "candidate")
        best = max((record.candidate for record in self.records.records.values()), key=self.score)
        if self.score(best) == -math.inf:
            return f"{measured} measured, none of which could be merged"
        return (
            f"{measured} measured, best {self.search.metric} "
            f"{100 * self.score(best):.2f} %: {' '.join(filter(None, (best.merge, shown(best.values))))}"
        )

    def plan(self) -> str:
        """Say what is ahead."""
        each, own = f"{size(self.bytes_each)} each", self.search.strategy
        title = self.search.label if self.search.label == own.replace("_", "-") else f"{self.search.label} ({own})"
        held = f"memory would hold {self.memory:,}" if self.room < self.memory else "as many as memory holds"
        if self.room > self.memory:
            held = f"more than the {self.memory:,} that memory is thought to hold"
        lines = [
            f"search {title}: by {self.search.metric} on validation data; up to "
            f"{counted(self.room, 'candidate')} share a sweep of it ({each}, {held})"
        ]
        for name, space in self.spaces.items():
            over = ", ".join(f"{setting} {span(values)}" for setting, values in space.items())
            lines.append(f"  {name}: {over or 'as it stands'}")
        if self.records.records:
            lines.append(f"  {counted(len(self.records.records), 'candidate')} measured before")
        return "\n".join(lines)


def forms(merger: Merger, space: Space) -> list[Merger]:
    """Return a merge with each whole step that it is searched over, since steps decide what a merge takes."""
    steps = [(name, value) for name in space if name in WHOLE for value in space[name]]
    return [merger, *(changed(merger, {name: value}) for name, value in steps)]


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
    return ", ".join(map(text_of, values))


def shown(values: Values) -> str:
    """Return settings as they are read at a glance.

    >>> shown({"method.density": 0.3, "space": "knots"})
    'method.density=0.3 space=knots'
    """
    return " ".join(f"{name}={text_of(value)}" for name, value in values.items())


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
    say(f"Best settings by {run.search.metric} on validation data, in %")  # a title would be cut to the table's width
    show(console(), table_of(run, best))
    for name, candidate in best.items():
        if settings := at_an_end(run.spaces[name], candidate.values):
            say(f"{name}: {' and '.join(settings)} best at an end of what was tried; a wider range may be better")
    _write_all(run, mergers, folder)
    say(f"{folder}: {TABLE}, {BEST} (a configuration of these merges), plots/search_*.png")
    say(f"every candidate: tensorboard --logdir {folder / EVENTS}")
    return mergers


def _write_all(run: Run, mergers: Mapping[str, Merger], folder: Path) -> None:
    write_best(folder / BEST, mergers)
    images = {}
    for name in mergers:
        scored = [(readable(one.values), run.score(one)) for one in run.found(name) if one.values]
        points = [(values, score) for values, score in scored if score > -math.inf]
        if len(points) > 1:
            images[name] = png(search_plot(name, points, run.search.metric))
            with atomic_write(folder / "plots" / f"search_{name}.png") as temporary:
                temporary.write_bytes(images[name])
    rows = []
    for one in (record.candidate for record in run.records.by_merge() if not record.failed):
        scores = {name: run.records.value(one, name) for name in run.metrics}
        known = {name: score for name, score in scores.items() if score is not None}
        rows.append((one.merge, readable(one.values), known))
    write_candidates(folder / EVENTS, rows, images)


def table_of(run: Run, best: Mapping[str, Candidate]) -> Table:
    """Return the best settings of each merge as a table."""
    table = Table()
    for heading, side in (("merge", "left"), ("settings", "left"), (run.search.metric, "right"), ("tried", "right")):
        table.add_column(heading, justify=side)
    for name, candidate in best.items():
        tried = str(len(run.found(name)))
        table.add_row(name, shown(candidate.values) or "-", f"{100 * run.score(candidate):.2f}", tried)
    return table


def at_an_end(space: Space, values: Mapping[str, Any]) -> list[str]:
    """Return the settings whose value is the lowest or the highest of the numbers that were offered.

    >>> at_an_end({"density": [0.1, 0.2, 0.3], "coefficients": [0.5, 1.0, 1.5]}, {"density": 0.3, "coefficients": 1.0})
    ['density']
    """
    found = []
    for name, offered in space.items():
        numbers = [offered.low, offered.high] if isinstance(offered, Range) else offered
        if len(numbers) > 1 and all(isinstance(one, int | float) for one in numbers):
            found += [name] * (values.get(name) in (min(numbers), max(numbers)))
    return found


def write_best(path: Path, mergers: Mapping[str, Merger]) -> None:
    """Write the best merges as a configuration that other subcommands read."""
    callback = {
        "class_path": "callbacks.MergeCallback",
        "init_args": {"mergers": {name: configuration(merger) for name, merger in mergers.items()}},
    }
    with atomic_write(path) as temporary:
        text = yaml.safe_dump({"trainer": {"callbacks": [callback]}}, sort_keys=False, width=120)
        temporary.write_text(text, encoding="utf-8")


def configuration(merger: Merger) -> dict[str, Any]:
    """Return a merge as a configuration has it.

    >>> from mergers import Ties
    >>> configuration(Merger("knots", Ties(density=0.3), coefficients=0.6))["method"]["init_args"]["density"]
    0.3
    """
    return {**plain_settings(merger), "coefficients": merger.coefficients}
