"""Runs that differ in the seed alone belong together; others stand side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from callbacks.results import REFERENCES, Results
from callbacks.statistics import Difference, Spread, paired
from launch.reporting.runs import Run
from launch.reporting.settings import without_seed
from mergers.errors import SheetbendError

_SHOWN = 12  # letters of a fingerprint


@dataclass(frozen=True)
class Measure:
    """One number of a variant: its heading, and how it is read from results."""

    heading: str
    of: Callable[[Results, str], float | None]


MEAN = Measure("mean", Results.mean_value)
NORMALISED = Measure("norm. mean", Results.mean_normalised)


def hits(k: int, task: str = "all", space: str = "joint") -> Measure:
    """Return hits@k where the labels of all tasks compete, over all examples or as the mean over tasks."""
    suffix = "" if task == "all" else f" {task}"
    return Measure(f"hits@{k}{suffix}", lambda results, name: results.joint(name, k, task, space))


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, by ascending seed.

    Attributes:
        label: what the report calls it.
        runs: each of another seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Results:
        """The results of the first seed."""
        return self.runs[0].results

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len(self.runs)

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """Every variant of any run, in order."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.results.variants))

    @cached_property
    def merged(self) -> tuple[str, ...]:
        """The variants that are one model for all tasks and not the pretrained one."""
        return tuple(name for name in self.variants if name not in REFERENCES)

    @cached_property
    def starts(self) -> dict[str, str]:
        """What each learned merge started from; tables and pictures leave these variants out."""
        return {learned: start for run in self.runs for learned, start in run.starts.items()}

    @property
    def shown(self) -> tuple[str, ...]:
        """The variants that are rows of tables: all but what learned merges started from."""
        return tuple(name for name in self.variants if self.kind(name) != "start")

    @property
    def headline(self) -> Measure:
        """What ranks merges: the normalised mean where there is one, else the mean."""
        return NORMALISED if self.spread(NORMALISED, "finetuned") else MEAN

    def kind(self, variant: str) -> str:
        """Return where a variant comes from: ``run``, ``searched``, ``learned``, or ``start`` of what is learned."""
        if variant in self.starts.values():
            return "start"
        source = self._with(variant)[0].source(variant)
        # An adaptation that tells its start apart tests merges that are not learned, too.
        static = source.kind == "learned" and source.starts and variant not in self.starts
        return "run" if static or variant in REFERENCES else source.kind

    def description(self, variant: str) -> str:
        """Return what a variant is; of one whose settings differ between seeds, each."""
        each = [(run, run.results.descriptions.get(variant, "")) for run in self._with(variant)]
        if not self.uneven(variant):
            return each[0][1]
        return "; ".join(f"{run.name if run.seed is None else f'seed {run.seed}'}: {text}" for run, text in each)

    def uneven(self, variant: str) -> bool:
        """Return whether a variant's settings differ between seeds."""
        return len({run.results.descriptions.get(variant) for run in self._with(variant)}) > 1

    def _with(self, variant: str) -> list[Run]:
        return [run for run in self.runs if variant in run.results.variants]

    def _numbers(self, measure: Measure, variant: str) -> dict[int, float]:
        """Return the number of each run that has it, by the place of the run."""
        found = ((place, measure.of(run.results, variant)) for place, run in enumerate(self.runs))
        return {place: value for place, value in found if value is not None}

    def spread(self, measure: Measure, variant: str) -> Spread | None:
        """Return mean and deviation over seeds."""
        found = self._numbers(measure, variant)
        return Spread(tuple(found.values())) if found else None

    def difference(self, measure: Measure, first: str, second: str) -> Difference | None:
        """Return by how much one variant is above another, over the runs that have both."""
        a, b = self._numbers(measure, first), self._numbers(measure, second)
        common = [place for place in a if place in b]
        return paired([a[place] for place in common], [b[place] for place in common]) if common else None

    def ranking(self, measure: Measure, kinds: Sequence[str] = ("run", "searched", "learned")) -> list[str]:
        """Return the merges that all runs have, the best first, without starts; equals stay in order."""
        found = {name: self.spread(measure, name) for name in self.merged if self.kind(name) in kinds}
        means = {name: spread.mean for name, spread in found.items() if spread and spread.count == self.seeds}
        return sorted(means, key=means.get, reverse=True)

    def own_measures(self) -> list[Measure]:
        """Return the value of each task, their mean and, with ``finetuned`` at hand, the normalised mean."""
        tasks = [Measure(task, lambda results, name, t=task: results.value(name, t)) for task in self.first.tasks]
        return [*tasks, MEAN, *([NORMALISED] if "finetuned" in self.variants else [])]

    def joint_measures(self, space: str = "joint") -> list[Measure]:
        """Return hits@k over all examples, then as the mean over tasks."""
        ks = self.first.hits
        return [hits(k, task, space) for task in ("all", "mean") for k in ks if self._any(hits(k, task, space))]

    def _any(self, measure: Measure) -> bool:
        return any(self.spread(measure, name) for name in self.variants)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of runs, in the order in which they were given.

    Parts of a run join it where they tested the same adapters on the same examples; others are runs of their own.

    Raises:
        SheetbendError: two runs have the same settings and the same seed.
    """
    found: dict[tuple, list[Run]] = {}
    for given in runs:
        joined, apart = with_parts(given)
        for run in (joined, *apart):
            found.setdefault(identity(run), []).append(run)
    groups = [sorted(members, key=lambda run: -1 if run.seed is None else run.seed) for members in found.values()]
    for members in groups:
        for one, other in pairwise(members):
            if one.seed == other.seed:
                seed = "no seed that is known" if one.seed is None else f"seed {one.seed}"
                raise SheetbendError(
                    f"{one.folder} and {other.folder} have the same settings and {seed}; give one of them"
                )
    return [Group(label, tuple(members)) for label, members in zip(_labels(groups), groups, strict=True)]


def identity(run: Run) -> tuple:
    """Return what runs share that differ in the seed alone: settings, tasks, metrics, and the examples of the test."""
    results = run.results
    seen = tuple((task, results.metric(task), examples_of(run, task)) for task in results.tasks)
    part = "" if run.kind == "run" else without_seed(run.name, run.seed)
    return run.kind, part, results.split, seen, tuple(sorted(run.settings.items()))


def examples_of(run: Run, task: str) -> str:
    """Return how many examples were tested, and their fingerprint in short."""
    return f"{run.results.count(task) or 0:,} ({(run.fingerprint(task) or 'unknown')[:_SHOWN]})"


def with_parts(run: Run) -> tuple[Run, list[Run]]:
    """Return a run with the merges of those parts that are comparable, and the other parts."""
    results, origins, starts, apart = run.results, dict(run.origins), dict(run.starts), []
    for part in run.parts:
        if not comparable(run.results, part.results) or any(
            run.fingerprint(task) != part.fingerprint(task) for task in run.results.tasks
        ):
            apart.append(part)
            continue
        names = {name: _name_beside(results, part, name) for name in part.results.merged}
        new = {name: shown for name, shown in names.items() if shown is not None}
        scores = (replace(s, variant=new[s.variant]) for s in part.results.scores if s.variant in new)
        described = {new[name]: text for name, text in part.results.descriptions.items() if name in new}
        results = replace(
            results, scores=(*results.scores, *scores), descriptions={**results.descriptions, **described}
        )
        origins |= dict.fromkeys(new.values(), part)
        starts |= {new[learned]: new[start] for learned, start in part.starts.items() if {learned, start} <= set(new)}
    return replace(run, results=results, origins=origins, starts=starts, parts=()), apart


def _name_beside(results: Results, part: Run, name: str) -> str | None:
    """Return what a merge of a part is called in the table of its run; none where it stands there already."""
    if name not in results.variants:
        return name
    if results.descriptions.get(name) == part.results.descriptions.get(name):
        return None
    return f"{name} [{part.name}]"


def comparable(one: Results, other: Results) -> bool:
    """Return whether two results are of the same adapters and tasks: what is not merged agrees, but for one example."""
    if one.tasks != other.tasks or one.split != other.split:
        return False
    for name in ("pretrained", "finetuned"):
        for task in one.tasks:
            a, b = one.value(name, task), other.value(name, task)
            if (
                (a is None) != (b is None)
                or one.metric(task) != other.metric(task)
                or one.count(task) != other.count(task)
            ):
                return False
            if a is not None and abs(a - b) > 1.01 / max(one.count(task) or 1, 1):
                return False
    return True


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for each group: what its folders' names share, with the folder above if need be."""
    labels = [_shared(members, 1) for members in groups]
    for depth in (2, 3):
        doubled = {label for label in labels if labels.count(label) > 1}
        labels = [_shared(m, depth) if label in doubled else label for label, m in zip(labels, groups, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} ({i})" for i, label in enumerate(labels, 1)]


def _shared(members: Sequence[Run], depth: int) -> str:
    names = ["/".join(run.folder.resolve().parts[-depth:]) for run in members]
    if len(names) == 1:
        return names[0]
    plain = {without_seed(name, run.seed) for name, run in zip(names, members, strict=True)}
    found = plain.pop() if len(plain) == 1 else f"{names[0]} and {len(names) - 1} more"
    found = found.replace("{seed}", "").strip("-_=/. ")
    above = members[0].folder.resolve().parent.name
    return above if found.lower() in ("", "seed", "run") and above else found or names[0]
