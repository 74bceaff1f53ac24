"""What is searched, and how."""

import importlib
import itertools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from launch.commands.merge import as_values
from lightning_modules.checks import check_folder_name, check_number
from mergers import Merger, SheetbendError
from mergers.errors import did_you_mean
from mergers.fields import AmbiguousSettingError, find_setting, names_of, settings_of, with_setting

StrategyName = Literal["grid", "one_at_a_time", "optuna"]

# One value for each setting that is searched, by its dotted name.
Values = dict[str, Any]

# Values that a range with steps may have: a mistyped step would else take all memory.
MOST = 10_000

# Settings that are steps of their own, with settings.
WHOLE = ("space", "method", "transforms", "finish")


@dataclass(frozen=True)
class Range:
    """All numbers between two.

    Attributes:
        low: The smallest.
        high: The largest.
        step: Between neighbours; none: every number counts, which only optuna can search.
        log: Whether small numbers are looked at as closely as large ones; takes no step.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check_number(f"search range {name}", getattr(self, name))
        if self.low >= self.high:
            raise SheetbendError(f"search range from {self.low:g} to {self.high:g} is empty; give low below high")
        if not isinstance(self.log, bool):
            raise SheetbendError(f"search range log is {self.log!r}; give true or false")
        if self.step is not None:
            check_number("search range step", self.step, above=0)
            if self._steps < 1:
                raise SheetbendError(
                    f"search range step {self.step:g} leads from {self.low:g} past {self.high:g}; give a smaller step"
                )
            if self._steps >= MOST:
                raise SheetbendError(
                    f"search range from {self.low:g} to {self.high:g} has {self._steps + 1:,} values of step "
                    f"{self.step:g}; give a step that leaves {MOST:,} at most"
                )
        if self.log and (self.low <= 0 or self.step is not None):
            raise SheetbendError("search range with log: true begins above 0 and takes no step; mend it")

    @property
    def _steps(self) -> int:
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def values(self) -> list[float]:
        """Return the numbers of a range with steps.

        >>> Range(0.1, 0.5, 0.2).values(), Range(1, 3, 1).values()
        ([0.1, 0.3, 0.5], [1, 2, 3])
        """
        found = [round(self.low + number * self.step, 12) for number in range(self._steps + 1)]
        whole = all(isinstance(number, int) for number in (self.low, self.step))
        return [int(number) for number in found] if whole else found


# What a merge is searched over.
Space = dict[str, list[Any] | Range]


@dataclass(frozen=True)
class Search:
    """How the best settings of merges are found.

    Attributes:
        over: What each merge of the MergeCallback is searched over: by the name of a setting, such as ``coefficients``,
            ``density``, ``Dare.drop_rate``, ``space`` or ``method.rank_ratio``, a list of values, or a range
            (low, high, and step or log). Merges that lack a setting pass it over.
        of: The same for one merge, by its name; it takes the place of ``over`` there. An empty map: as it stands.
        strategy: ``one_at_a_time``: setting after setting, in the order given; its values in their order, until the
            first drop; the best is kept (Stoica et al., 2025, arXiv 2410.19735). ``grid``: all combinations.
            ``optuna``: ``trials`` candidates that a tree-structured Parzen estimator proposes.
        metric: What decides, on validation data: ``normalised`` (mean over tasks of the value divided by the finetuned
            one), ``mean`` of the tasks' values, or a metric of the joint label space, such as ``joint_hits@1``.
        trials: Of optuna, for each merge.
        storage: Of optuna: a database URL, or a file on a shared disk, through which several machines work on
            one study; none: a file in the folder of the search.
        at_once: Candidates that share a sweep of the data; none: as many as memory holds.
        name: Of the folder, ``searches/<name>`` in the run folder; none: the strategy.
    """

    over: Mapping[str, Any] = field(default_factory=dict)
    of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    strategy: StrategyName = "one_at_a_time"
    metric: str = "normalised"
    trials: int = 30
    storage: str | None = None
    at_once: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in get_args(StrategyName):
            raise SheetbendError(f"search.strategy is {self.strategy!r}; known: {', '.join(get_args(StrategyName))}")
        # Which joint label spaces there are is known with the data.
        if self.metric not in ("normalised", "mean") and not re.fullmatch(r"\w+_hits@\d+", self.metric):
            close = did_you_mean(self.metric, ["normalised", "mean", "joint_hits@1"])
            raise SheetbendError(
                f"search.metric {self.metric!r} is not recorded{close}; known: normalised, mean, joint_hits@1 and "
                "others of a joint label space"
            )
        for field_ in ("trials", "at_once"):
            if getattr(self, field_) is not None:
                check_number(f"search.{field_}", getattr(self, field_), least=1)
        if self.name is not None:
            check_folder_name("search.name", self.name)

    @property
    def label(self) -> str:
        """The name of the folder."""
        return self.name or self.strategy.replace("_", "-")

    def spaces(self, mergers: Mapping[str, Merger]) -> dict[str, Space]:
        """Return what each merge is searched over, {merge: {setting: values}}, by dotted names.

        Raises:
            SheetbendError: A merge or a setting that does not exist, a value that it cannot have, nothing to search.
        """
        unknown = [name for name in self.of or {} if name not in mergers]
        if unknown:
            close = did_you_mean(unknown[0], list(mergers))
            raise SheetbendError(f"search.of names {unknown[0]!r}; known merges: {', '.join(mergers)}{close}")
        nowhere = [name for name in self.over or {} if not any(_has(merger, name) for merger in mergers.values())]
        if nowhere:
            raise SheetbendError(_unknown(nowhere[0], mergers.values()))
        found = {name: self._space(name, merger) for name, merger in mergers.items()}
        if not any(found.values()):
            raise SheetbendError("search.over and search.of leave nothing to search; give a setting and its values")
        return found

    def _space(self, name: str, merger: Merger) -> Space:
        if name in (self.of or {}):
            given = self.of[name]
        else:
            given = {setting: values for setting, values in (self.over or {}).items() if _has(merger, setting)}
        space: Space = {}
        for setting, values in given.items():
            try:
                full = find_setting(merger, str(setting))
            except SheetbendError as error:
                raise SheetbendError(f"search.of {name}: {error}") from None
            if full in space:
                raise SheetbendError(f"search over {full} of {name} stands twice; give it once")
            space[full] = _values(setting, values)
            if isinstance(space[full], Range) and space[full].step is None and self.strategy != "optuna":
                raise SheetbendError(f"search over {setting}: {self.strategy} needs a step in its range; give one")
        _check(name, merger, space)
        return space


def _check(name: str, merger: Merger, space: Space) -> None:
    """Try every value of every setting, with every whole step that is searched."""
    steps = [setting for setting in space if setting in WHOLE]
    for chosen in itertools.product(*(space[setting] for setting in steps)):
        first = dict(zip(steps, chosen, strict=True))
        for setting, values in space.items():
            for value in [values.low, values.high] if isinstance(values, Range) else values:
                try:
                    changed(merger, {**first, setting: value})
                except SheetbendError as error:
                    raise SheetbendError(f"search over {setting} of {name}: {error}") from None


def _has(merger: Merger, name: str) -> bool:
    try:
        return bool(find_setting(merger, str(name)))
    except AmbiguousSettingError as error:
        raise SheetbendError(f"search.over: {error}") from None
    except SheetbendError:
        return False


def _unknown(name: Any, mergers: Collection[Merger]) -> str:
    """Return what to say of a setting that no merge has."""
    known = list(dict.fromkeys(path for merger in mergers for path in settings_of(merger)))
    close = did_you_mean(str(name), [name for merger in mergers for name in names_of(merger)])
    return f"search.over names {name!r}, which no merge has{close}; known: {', '.join(known)}"


def _values(setting: str, values: Any) -> list[Any] | Range:
    if isinstance(values, Mapping):
        known = set(Range.__dataclass_fields__)
        if not {"low", "high"} <= set(values) <= known:
            raise SheetbendError(f"search over {setting}: a range has low, high, and step or log, not {dict(values)}")
        try:
            return Range(**values)
        except SheetbendError as error:
            raise SheetbendError(f"search over {setting}: {str(error).removeprefix('search ')}") from None
    if values is not None and not isinstance(values, list | tuple):
        raise SheetbendError(f"search over {setting}: {values!r} is no list of values; give [{values!r}], or a range")
    if not values:
        raise SheetbendError(f"search over {setting}: the list is empty; give values")
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise SheetbendError(f"search over {setting}: {twice[0]!r} stands twice; give it once")
    return [plain(value) for value in values]


def plain(value: Any) -> Any:
    """Return a value as a configuration has it: a step as its class and what is not as by default.

    >>> from mergers import Dare
    >>> plain([Dare(0.1), 0.2])
    [{'class_path': 'mergers.Dare', 'init_args': {'drop_rate': 0.1}}, 0.2]
    """
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if not is_dataclass(value):
        return value
    default = {field.name: field.default for field in fields(value)}
    whole = as_values(value)
    given = {name: one for name, one in whole.get("init_args", {}).items() if one != default[name]}
    return {"class_path": whole["class_path"], **({"init_args": given} if given else {})}


def built(value: Any) -> Any:
    """Return what a value of a configuration stands for.

    >>> built({"class_path": "mergers.KnOTS", "init_args": {"concatenate": "outputs"}}).concatenate
    'outputs'

    Raises:
        SheetbendError: There is no such class, or it takes no such settings.
    """
    if isinstance(value, list | tuple):
        return [built(one) for one in value]
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    path = str(value["class_path"])
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (isinstance(found, type) and is_dataclass(found)):  # any function would be called else
        raise SheetbendError(f"there is no class {path}; give one such as mergers.KnOTS")
    try:
        return found(**value.get("init_args") or {})
    except TypeError as error:
        raise SheetbendError(f"{path}: {error}") from None


def text_of(value: Any) -> str:
    """Return a value in few words.

    >>> text_of(0.30000001), text_of({"class_path": "mergers.KnOTS", "init_args": {"concatenate": "outputs"}})
    ('0.3', 'KnOTS(concatenate=outputs)')
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value)) or "none"
    if not isinstance(value, Mapping) or "class_path" not in value:
        return f"{value:g}" if isinstance(value, float) else str(value)
    given = ", ".join(f"{name}={text_of(one)}" for name, one in (value.get("init_args") or {}).items())
    return str(value["class_path"]).rpartition(".")[2] + (f"({given})" if given else "")


def readable(values: Values) -> Values:
    """Return values with words for all that is no number.

    >>> readable({"coefficients": 0.3, "finish": None})
    {'coefficients': 0.3, 'finish': 'None'}
    """
    return {name: value if isinstance(value, int | float) else text_of(value) for name, value in values.items()}


def start_of(merger: Merger, space: Space) -> Values:
    """Return the values that ``merger`` itself has, as ``space`` spells them where they are in it.

    >>> start_of(Merger("knots", coefficients=0.4), {"space": ["full", "knots"], "coefficients": [0.2]})
    {'space': 'knots', 'coefficients': 0.4}
    """
    known = settings_of(merger)
    found = {}
    for name, values in space.items():
        listed = [] if isinstance(values, Range) else values
        found[name] = next((value for value in listed if changed(merger, {name: value}) == merger), plain(known[name]))
    return found


def changed(merger: Merger, values: Values) -> Merger:
    """Return ``merger`` with these values; whole steps before their settings.

    Raises:
        SheetbendError: There is no such setting, or it takes no such value.
    """
    for name in sorted(values, key=lambda name: name.count(".")):
        merger = with_setting(merger, name, built(values[name]))
    return merger
