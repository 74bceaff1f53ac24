"""Which candidate is next: a grid, one setting at a time, or what optuna proposes."""

import itertools
import json
import socket
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.searching.settings import Range, Search, Space, Values, start_of
from mergers import Merger, SheetbendError
from mergers.seeding import derive_seed

# Of optuna: proposals before the first that looks at scores, proposals at once after that, and the seconds after which
# a trial of another machine that has no score is not waited for.
STARTUP, AT_ONCE, ABANDONED = 10, 4, 24 * 3600
JOURNAL = "optuna.journal"


class Strategy(ABC):
    """Proposes values and hears what became of them.

    Attributes:
        remembers: whether it keeps what it was told beyond the process.
    """

    remembers = False

    @abstractmethod
    def ask(self, most: int) -> list[Values]:
        """Return the next candidates, ``most`` at most; none when the search has ended."""

    @abstractmethod
    def tell(self, values: Values, score: float, measured: Any = None) -> None:
        """Hear the score of a candidate; every one that was asked for is told once.

        Args:
            values: of the candidate.
            score: what decides.
            measured: all that was measured, for others who work on the same search.
        """

    def heard(self) -> list[tuple[Values, Any]]:
        """Return what others have measured since the last call."""
        return []

    def elsewhere(self) -> int:
        """Return how many candidates others have under way."""
        return 0


class Grid(Strategy):
    """All combinations, the last setting changing fastest."""

    def __init__(self, space: Space):
        listed = [values.values() if isinstance(values, Range) else values for values in space.values()]
        # One by one: all of them may be more than memory holds.
        self._left = (dict(zip(space, values, strict=True)) for values in itertools.product(*listed))

    def ask(self, most: int) -> list[Values]:
        """Return the next combinations."""
        return list(itertools.islice(self._left, most))

    def tell(self, values: Values, score: float, measured: Any = None) -> None:
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

    def tell(self, values: Values, score: float, measured: Any = None) -> None:
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

    Each trial keeps what was measured beside its score, so that every machine ends with the candidates of all.

    Args:
        space: of one merge.
        start: its own settings, the first candidate where the space has them.
        study: name of the study.
        trials: how many it has in all.
        storage: a database URL, or a file.
        seed: of the proposals.
        worker: who asks. Its trials that were cut off are asked for first when it begins again.
        shared: whether others work on the study; if not, every trial is the worker's own.
    """

    remembers = True

    def __init__(
        self,
        space: Space,
        start: Values,
        study: str,
        trials: int,
        storage: str,
        seed: int,
        worker: str,
        shared: bool = True,
    ):
        optuna = _optuna()
        self._space, self._trials, self._worker, self._shared = space, trials, worker, shared
        self._distributions = {name: _distribution(values) for name, values in space.items()}
        self._states = optuna.trial.TrialState
        self._study = _open_study(optuna, storage, study)
        self._sampler, self._seed = optuna.samplers.TPESampler, seed
        for trial in self._known():
            # Cut off while its values were drawn; they are drawn again, to the same.
            if trial.state == self._states.RUNNING and self._owns(trial) and set(trial.params) != set(space):
                self._study.tell(trial.number, state=self._states.FAIL)
        known = self._known()
        if not known and all(_holds(values, start[name]) for name, values in space.items()):
            self._study.enqueue_trial(_encoded(space, start))
        self._cut_off = [one for one in known if one.state == self._states.RUNNING and self._owns(one)]
        self._asked: dict[str, list[int]] = {}
        self._told: set[int] = set()

    def ask(self, most: int) -> list[Values]:
        """Return proposals: of those without a score, few at once, since each score makes the next ones better."""
        found = []
        while self._cut_off and len(found) < most:
            trial = self._cut_off.pop(0)
            found.append(self._note(trial.number, trial.params))
        if found:  # some may have a score by now, which comes before the next proposals
            return found
        trials = self._study.get_trials(deepcopy=False, states=[self._states.COMPLETE, self._states.RUNNING])
        running = [trial for trial in trials if trial.state == self._states.RUNNING]
        complete, own = len(trials) - len(running), sum(map(self._owns, running))
        alive = sum(self._owns(trial) or _age(trial) < ABANDONED for trial in running)
        free = max(AT_ONCE, STARTUP - complete) - own
        for _ in range(min(most - len(found), self._trials - complete - alive, free)):
            self._study.sampler = self._sampler_for(len(self._known()))
            trial = self._study.ask(self._distributions)
            trial.set_user_attr("worker", self._worker)
            found.append(self._note(trial.number, trial.params))
        return found

    def tell(self, values: Values, score: float, measured: Any = None) -> None:
        """Note the score in the study, and what was measured."""
        number = self._asked[_key(values)].pop()
        self._told.add(number)
        if measured is not None:
            self._study.set_user_attr(f"measured-{number}", measured)
        self._study.tell(number, score)

    def heard(self) -> list[tuple[Values, Any]]:
        """Return what others have measured."""
        complete = self._study.get_trials(deepcopy=False, states=[self._states.COMPLETE])
        new = [trial for trial in complete if trial.number not in self._told]
        self._told.update(trial.number for trial in new)
        measured = self._study.user_attrs if new else {}
        found = [(_decoded(self._space, trial.params), measured.get(f"measured-{trial.number}")) for trial in new]
        return [(values, one) for values, one in found if one is not None]

    def elsewhere(self) -> int:
        """Return how many trials others have under way."""
        running = self._study.get_trials(deepcopy=False, states=[self._states.RUNNING])
        return sum(not self._owns(trial) and _age(trial) < ABANDONED for trial in running)

    def _known(self) -> list[Any]:
        """Return all trials but those that were cut off before they had their values."""
        return [one for one in self._study.get_trials(deepcopy=False) if one.state != self._states.FAIL]

    def _sampler_for(self, number: int) -> Any:
        # Seeded for each trial: a search that goes on proposes what the uninterrupted one would have proposed.
        seed = derive_seed(self._seed, "trial", number) % 2**32
        return self._sampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP)

    def _owns(self, trial: Any) -> bool:
        return not self._shared or trial.user_attrs.get("worker") == self._worker

    def _note(self, number: int, params: Values) -> Values:
        values = _decoded(self._space, params)
        self._asked.setdefault(_key(values), []).append(number)
        return values


def _key(values: Values) -> str:
    return json.dumps(values, default=str, sort_keys=True)


def _age(trial: Any) -> float:
    """Return for how many seconds a trial has been under way."""
    return (datetime.now() - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0


def _open_study(optuna: Any, storage: str, name: str) -> Any:
    """Return the study of that name, made if it is not there.

    Raises:
        SheetbendError: The storage cannot be opened.
    """
    try:
        return optuna.create_study(
            storage=_storage(storage), study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # each database has its own
        reason = " ".join(str(error).split()).partition(" (Background")[0][:200]
        # A URL may hold a password.
        shown = f"{storage.partition('://')[0]}://..." if "://" in storage else storage
        raise SheetbendError(
            f"search.storage {shown} cannot be opened ({type(error).__name__}: {reason}); give a file, or the URL of a "
            "database such as sqlite:///search.db"
        ) from None


def check_installed(search: Search) -> None:
    """Raise `SheetbendError` if the strategy needs what is not installed."""
    if search.strategy == "optuna":
        _optuna()


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
    # Its lock is a link: one to a relative path points nowhere, and would never be taken from a process that is dead.
    path = Path(storage).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _distribution(values: list[Any] | Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(list(range(len(values))) if _opaque(values) else values)
    numbers = (values.low, values.high, values.step)
    if all(isinstance(number, int | None) for number in numbers) and (values.step or values.log):
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
    return {name: _meant(given, params[name]) for name, given in space.items()}


def _meant(given: list[Any] | Range, stored: Any) -> Any:
    if isinstance(given, list):
        return given[stored] if _opaque(given) else stored
    return round(stored, 12) if given.step else stored  # 0.1 + 2 * 0.1 is 0.3


def _holds(values: list[Any] | Range, value: Any) -> bool:
    """Return whether optuna could have proposed the value."""
    if isinstance(values, list):
        return value in values
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if values.step:
        return value in values.values()
    whole = values.log and isinstance(values.low, int) and isinstance(values.high, int)
    return values.low <= value <= values.high and (isinstance(value, int) or not whole)


def strategy_of(
    search: Search, space: Space, merger: Merger, name: str, folder: Path, seed: int, identity: Any = None
) -> Strategy:
    """Return the strategy for one merge.

    Args:
        search: the settings.
        space: what the merge is searched over.
        merger: the merge as it stands in the configuration.
        name: of the merge.
        folder: of the search, which holds optuna's file if no storage is given.
        seed: of the run.
        identity: what scores depend on beside settings. A study is one of it, the merge, its space and the metric:
            whatever differs begins another.
    """
    start = start_of(merger, space)
    if search.strategy == "grid":
        return Grid(space)
    if search.strategy == "one_at_a_time":
        return OneAtATime(space, start)
    what = zlib.crc32(repr((identity, repr(merger), space, search.metric)).encode())
    worker = f"{socket.gethostname()}:{folder.resolve()}"
    storage = search.storage or str(folder / JOURNAL)
    if search.storage:  # others begin at the same time, with the same seed
        seed += zlib.crc32(worker.encode())
    else:  # nobody else works in the folder: the lock is one of a killed process, and optuna waits for it half a minute
        for lock in folder.glob(f"{JOURNAL}.lock*"):
            lock.unlink()
    study = f"{search.label}/{name}/{what:08x}"
    return Optuna(space, start, study, search.trials, storage, seed, worker, bool(search.storage))
