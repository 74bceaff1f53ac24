"""Which candidate is next: a grid, one setting at a time, or what optuna proposes."""

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Any

from launch.searching.settings import Range, Search, Values, begun
from mergers import Merger, SheetbendError

Space = dict[str, list[Any] | Range]


class Strategy(ABC):
    """Proposes values and hears what became of them."""

    @abstractmethod
    def ask(self, most: int) -> list[Values]:
        """Return the next candidates, ``most`` at most; none when the search has ended."""

    @abstractmethod
    def tell(self, values: Values, score: float) -> None:
        """Hear the score of a candidate; every one that was asked for is told once."""


class Grid(Strategy):
    """All combinations, the last setting changing fastest."""

    def __init__(self, space: Space):
        listed = [values.values() if isinstance(values, Range) else values for values in space.values()]
        self._left = [dict(zip(space, values, strict=True)) for values in itertools.product(*listed)]

    def ask(self, most: int) -> list[Values]:
        """Return the next combinations."""
        asked, self._left = self._left[:most], self._left[most:]
        return asked

    def tell(self, values: Values, score: float) -> None:
        """Nothing depends on it."""


class OneAtATime(Strategy):
    """Setting after setting: its values in order until the first drop, then the best of all so far is kept.

    A merge is searched from its own settings, which are a candidate themselves. Each value waits for the score of the
    one before, so one candidate is asked for at a time.
    """

    def __init__(self, space: Space, start: Values):
        listed = {name: values.values() if isinstance(values, Range) else values for name, values in space.items()}
        self._walk = _walk(listed, start)
        self._next: Values | None = next(self._walk)
        self._waits = False

    def ask(self, most: int) -> list[Values]:
        """Return the next candidate, if the one before has its score."""
        if self._next is None or self._waits or most < 1:
            return []
        self._waits = True
        return [self._next]

    def tell(self, values: Values, score: float) -> None:
        """Go on from the score."""
        self._waits = False
        try:
            self._next = self._walk.send(score)
        except StopIteration:
            self._next = None


def _walk(space: dict[str, list[Any]], start: Values) -> Generator[Values, float, None]:
    """Yield candidates, each for its score."""
    best, highest = start, (yield start)
    for name, values in space.items():
        around, known, before = best, highest, None
        for value in values:
            if value == around[name]:
                score = known
            else:
                candidate = {**around, name: value}
                score = yield candidate
                if score > highest:
                    best, highest = candidate, score
            if before is not None and score < before:
                break
            before = score


class Optuna(Strategy):
    """What a tree-structured Parzen estimator proposes; several machines may share a study.

    Args:
        space: of one merge.
        start: its own settings, the first candidate where the space has them.
        study: name of the study.
        trials: how many it has in all.
        storage: a database URL, or a file.
        seed: of the proposals.
        worker: whose trials are given up when it begins again.
    """

    def __init__(self, space: Space, start: Values, study: str, trials: int, storage: str, seed: int, worker: str):
        optuna = _optuna()
        self._trials, self._worker = trials, worker
        self._distributions = {name: _distribution(values) for name, values in space.items()}
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(
            storage=_storage(storage), sampler=sampler, study_name=study, direction="maximize", load_if_exists=True
        )
        self._states = optuna.trial.TrialState
        for trial in self._study.get_trials(states=[self._states.RUNNING]):
            if trial.user_attrs.get("worker") == worker:  # it was interrupted
                self._study.tell(trial.number, state=self._states.FAIL)
        if not self._study.trials and all(_holds(values, start[name]) for name, values in space.items()):
            self._study.enqueue_trial(_encoded(space, start))
        self._space = space
        self._asked: dict[str, list[Any]] = {}

    def ask(self, most: int) -> list[Values]:
        """Return proposals, made at once."""
        under_way = self._study.get_trials(states=[self._states.COMPLETE, self._states.RUNNING])
        found = []
        for _ in range(min(most, self._trials - len(under_way))):
            trial = self._study.ask(self._distributions)
            trial.set_user_attr("worker", self._worker)
            values = _decoded(self._space, trial.params)
            self._asked.setdefault(json.dumps(values, default=str), []).append(trial)
            found.append(values)
        return found

    def tell(self, values: Values, score: float) -> None:
        """Note the score in the study."""
        self._study.tell(self._asked[json.dumps(values, default=str)].pop(), score)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SheetbendError(
            "search.strategy optuna needs the package optuna; install it with pip install 'sheetbend[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(storage: str) -> Any:
    """Return the database of that URL, or a journal in that file, which needs no database and works on shared disks."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        return RDBStorage(storage)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


def _distribution(values: list[Any] | Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(list(range(len(values))) if _opaque(values) else values)
    whole = all(isinstance(number, int) for number in (values.low, values.high)) and values.step != 0
    if whole and isinstance(values.step, int | None) and not (values.step is None and not values.log):
        return IntDistribution(values.low, values.high, step=values.step or 1, log=values.log)
    return FloatDistribution(values.low, values.high, step=values.step, log=values.log)


def _opaque(values: list[Any]) -> bool:
    """Return whether optuna cannot store the values themselves."""
    return not all(value is None or isinstance(value, bool | int | float | str) for value in values)


def _encoded(space: Space, values: Values) -> Values:
    return {
        name: given.index(values[name]) if isinstance(given, list) and _opaque(given) else values[name]
        for name, given in space.items()
    }


def _decoded(space: Space, params: Values) -> Values:
    return {
        name: given[params[name]] if isinstance(given, list) and _opaque(given) else params[name]
        for name, given in space.items()
    }


def _holds(values: list[Any] | Range, value: Any) -> bool:
    if isinstance(values, list):
        return value in values
    return isinstance(value, int | float) and values.low <= value <= values.high


def strategy_of(search: Search, space: Space, merger: Merger, name: str, folder: Path, seed: int) -> Strategy:
    """Return the strategy for one merge.

    Args:
        search: the settings.
        space: what the merge is searched over.
        merger: the merge as it stands in the configuration.
        name: of the merge.
        folder: of the search, which holds optuna's file if no storage is given.
        seed: of the run.
    """
    start = begun(merger, list(space))
    if search.strategy == "grid":
        return Grid(space)
    if search.strategy == "one_at_a_time":
        return OneAtATime(space, start)
    storage = search.storage or str(folder / "optuna.journal")
    return Optuna(space, start, f"{search.label}/{name}", search.trials, storage, seed, str(folder.resolve()))
