"""What a test measured: the numbers, and what is derived from them."""

import csv
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from lightning_modules.scores import Score, headlines
from lightning_modules.variants import ENSEMBLE, FINETUNED, PRETRAINED
from mergers.errors import SheetbendError

# What merges are compared with.
REFERENCES = (PRETRAINED, FINETUNED, ENSEMBLE)
# What ends the name of the merge that a learned one started from, tested beside it.
START = "-start"
BY_NAME = "joint_by_name"
CSV_COLUMNS = ("variant", "task", "metric", "value", "count", "normalised")
FORMAT = 1


@dataclass(frozen=True)
class Results:
    """The scores of one run on one split, and how they came about.

    Variants and tasks keep the order in which the scores name them. What is derived is a fraction, or
    ``None`` where the run lacks what it needs.

    Attributes:
        scores: what was measured, one score a (variant, task, metric).
        meta: run name, seed, versions, split fingerprints, elapsed seconds, machine, peak memory, command, caveats:
            anything JSON can hold. Results of older versions lack some of it.
        split: the split it was measured on, ``test`` or ``val``.
        descriptions: variant name to its settings, one line each.

    >>> results = Results((Score("finetuned", "digits", "accuracy", 0.8, 50),
    ...                    Score("ties", "digits", "accuracy", 0.6, 50)))
    >>> round(results.normalised("ties", "digits"), 6)
    0.75
    """

    scores: tuple[Score, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    split: str = "test"
    descriptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self._by_key) != len(self.scores):
            raise ValueError("two scores share one variant, task and metric")

    @cached_property
    def _by_key(self) -> dict[tuple[str, str, str], Score]:
        return {(score.variant, score.task, score.metric): score for score in self.scores}

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """Every variant, in order."""
        return tuple(dict.fromkeys(score.variant for score in self.scores))

    @cached_property
    def merged(self) -> tuple[str, ...]:
        """The variants that are one model for all tasks and not the pretrained one, in order."""
        return tuple(name for name in self.variants if name not in REFERENCES)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Every task, in order, without ``all``."""
        return tuple(dict.fromkeys(score.task for score in self.scores if score.task != "all"))

    @property
    def adapts(self) -> bool:
        """Whether the run adapted a merge, where others train."""
        return bool(self.meta.get("adapts"))

    @property
    def starts(self) -> dict[str, str]:
        """What each learned merge started from, by name: those whose start was tested beside them."""
        return {name: f"{name}{START}" for name in self.merged if f"{name}{START}" in self.merged}

    def without(self, variants: Collection[str]) -> "Results":
        """Return the results of the other variants."""
        return replace(self, scores=tuple(score for score in self.scores if score.variant not in variants))

    @cached_property
    def _joint(self) -> dict[str, list[int]]:
        found = (re.fullmatch(r"(joint\w*)_hits@(\d+)", score.metric) for score in self.scores)
        pairs = sorted({(match[1], int(match[2])) for match in found if match})
        return {space: [k for other, k in pairs if other == space] for space, _ in pairs}

    @property
    def spaces(self) -> tuple[str, ...]:
        """The label spaces in which all tasks compete: ``joint``, and ``joint_by_name`` if it differs."""
        return tuple(self._joint)

    @property
    def hits(self) -> tuple[int, ...]:
        """The k for which joint hits@k was measured, ascending."""
        return tuple(self._joint.get("joint", ()))

    def score(self, variant: str, task: str, metric: str) -> Score | None:
        """Return the score as measured, or ``None``."""
        return self._by_key.get((variant, task, metric))

    def count(self, task: str) -> int | None:
        """Return on how many examples of ``task`` its metric was measured."""
        counts = [s.count for s in self.scores if s.task == task and s.metric == self.metric(task)]
        return counts[0] if counts else None

    @property
    def examples(self) -> int:
        """The examples of all tasks together."""
        return sum(self.count(task) or 0 for task in self.tasks)

    @cached_property
    def _headlines(self) -> dict[str, str]:
        return headlines(self.scores)

    def metric(self, task: str) -> str | None:
        """Return the name of the metric that stands for ``task`` in tables, ``accuracy`` for most."""
        return self._headlines.get(task)

    @property
    def measure(self) -> str:
        """What the tasks' values are in one word: ``accuracy``, or ``score`` where some have another metric."""
        return "accuracy" if all(name == "accuracy" for name in self._headlines.values()) else "score"

    def value(self, variant: str, task: str) -> float | None:
        """Return the metric of ``task``, among the task's own labels."""
        score = self.score(variant, task, self.metric(task) or "")
        return None if score is None else score.value

    def normalised(self, variant: str, task: str) -> float | None:
        """Return the value / value of ``finetuned`` on the same task of this run; none where that is not above 0."""
        value, finetuned = self.value(variant, task), self.value("finetuned", task)
        return None if value is None or finetuned is None or finetuned <= 0 else value / finetuned

    def mean_value(self, variant: str) -> float | None:
        """Return the mean over tasks of the value; every task weighs the same."""
        return _mean(self.value(variant, task) for task in self.tasks)

    def mean_normalised(self, variant: str) -> float | None:
        """Return the mean over tasks of the per-task ratios (not the ratio of the means)."""
        return _mean(self.normalised(variant, task) for task in self.tasks)

    def joint(self, variant: str, k: int, task: str = "all", space: str = "joint") -> float | None:
        """Return hits@k where the labels of all tasks compete.

        Args:
            variant: the weights under test.
            k: the label counts as found among the k highest scores.
            task: a task's name; ``all`` for every example of every task; ``mean`` for the mean over tasks.
            space: the label space; ``joint_by_name`` is the one in which equal names are one label.
        """
        if task == "mean":
            return _mean(self.joint(variant, k, name, space) for name in self.tasks)
        score = self.score(variant, task, f"{space}_hits@{k}")
        return None if score is None else score.value

    def _joint_pairs(self) -> list[tuple[str, int]]:
        return [(space, k) for space, ks in self._joint.items() for k in ks]

    def to_json(self) -> str:
        """Return the scores, the derived averages and the metadata as JSON text."""
        derived = {
            name: {
                f"mean_{self.measure}": self.mean_value(name),
                "mean_normalised": self.mean_normalised(name),
                **{f"mean_{s}_hits@{k}": self.joint(name, k, "mean", s) for s, k in self._joint_pairs()},
            }
            for name in self.variants
        }
        content = {
            "format": FORMAT,
            "split": self.split,
            "meta": self.meta,
            "descriptions": self.descriptions,
            "derived": derived,
            "scores": [asdict(score) for score in self.scores],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "results.json") -> "Results":
        """Read what ``to_json`` wrote; averages are derived anew.

        Args:
            text: the JSON text.
            name: what to call it in the error message.

        Raises:
            SheetbendError: the text is no results file of this format.
        """
        try:
            content = json.loads(text)
            version = content["format"]
            if version == FORMAT:
                scores = tuple(checked(Score(**score)) for score in content["scores"])
                meta, described = dict(content["meta"]), dict(content["descriptions"])
                _check_words(meta, content["split"], described)
                return cls(scores, meta, content["split"], described)
        except json.JSONDecodeError as error:
            raise SheetbendError(f"{name} is cut short or damaged ({error}); run the test again to write it") from error
        except KeyError as error:
            raise SheetbendError(
                f"{name} holds no results: it has no {error}; run the test again to write it"
            ) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise SheetbendError(f"{name} holds no results ({error}); run the test again to write it") from error
        raise SheetbendError(f"{name} has format {version!r}, of another version, not {FORMAT}; run the test again")

    def to_csv(self) -> str:
        """Return tidy CSV text, one row a number; rows of task ``mean`` are derived."""
        rows = []
        for score in self.scores:
            own = score.metric == self.metric(score.task)
            normalised = self.normalised(score.variant, score.task) if own else None
            rows.append((*asdict(score).values(), normalised))
        for name in self.variants:
            rows.append((name, "mean", self.measure, self.mean_value(name), "", self.mean_normalised(name)))
            rows += [
                (name, "mean", f"{space}_hits@{k}", self.joint(name, k, "mean", space), "", None)
                for space, k in self._joint_pairs()
            ]
        return csv_text(CSV_COLUMNS, (row for row in rows if row[3] is not None))

    @classmethod
    def from_csv(cls, text: str, name: str = "results.csv") -> "Results":
        """Read the scores of what ``to_csv`` wrote; the metadata is only in the JSON.

        Raises:
            SheetbendError: a column is missing or a number is none.
        """
        try:
            rows = [row for row in csv.DictReader(io.StringIO(text)) if row["task"] != "mean"]
            return cls(
                tuple(
                    Score(row["variant"], row["task"], row["metric"], float(row["value"]), int(row["count"]))
                    for row in rows
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SheetbendError(f"{name} holds no results ({error}); run the test again to write it") from error


def checked(score: Score) -> Score:
    """Return a score that was read from a file; raise `ValueError` if its fields are none of a score."""
    texts = (score.variant, score.task, score.metric)
    whole = isinstance(score.count, int) and _is_number(score.count) and score.count >= 0
    if not whole or not _is_number(score.value) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"not a score: {score}"[:200])
    return score


def _check_words(meta: Mapping[str, Any], split: Any, described: Mapping[str, Any]) -> None:
    """Raise `ValueError` where what stands beside the scores is of another type than is read of it."""
    found: dict[str, Any] = {name: meta.get(name) or {} for name in ("splits", "versions", "seconds", "machine")}
    found |= {"peak_bytes": meta.get("peak_bytes") or {}, "descriptions": described}
    odd = [name for name, value in found.items() if not isinstance(value, dict)]
    odd += [f"splits.{task}" for task, one in _items(found["splits"]) if not _is_map_of(one or {}, str | None)]
    odd += [name for name in ("seconds", "peak_bytes") if not all(_is_number(one) for _, one in _items(found[name]))]
    sizes = (one for name, one in _items(found["machine"]) if name.endswith("_bytes") and one is not None)
    odd += ["machine"] * (not all(map(_is_number, sizes)))
    odd += ["descriptions"] * (not _is_map_of(described, str))
    odd += ["split"] * (not isinstance(split, str)) + ["command"] * (not isinstance(meta.get("command"), str | None))
    if odd:
        raise ValueError(f"{odd[0]} is not what a test writes")


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _is_map_of(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, kind) for one in value.values())


def _is_number(value: Any) -> bool:
    """Return whether this is a finite number; of NaN, every comparison is false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV text with Unix line ends; ``None`` is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _mean(values: Iterable[float | None]) -> float | None:
    # A mean over some of the tasks would not compare with a mean over all of them.
    values = list(values)
    return None if not values or None in values else math.fsum(values) / len(values)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return the number and its noun, in the plural (by default with an s) where it takes one.

    >>> counted(1, "task"), counted(1200, "task"), counted(2, "batch", "batches")
    ('1 task', '1,200 tasks', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
