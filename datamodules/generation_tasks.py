"""What a task answered in words is: its prompt, its data, how its answers are read.

The 46 of STAR (Lee et al., 2025, arXiv 2502.10339) are declared in ``facts/generation.json``.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from datamodules.base import SPLITS
from datamodules.prompts import prompt_fields
from datamodules.tasks import check_task_name
from mergers.errors import SheetbendError

SCORINGS = ("label_words", "letter", "contains", "word_f1", "number")
CASES = ("keep", "lower", "lower_answer")


@dataclass(frozen=True)
class GenerationTask:
    """A question that a model answers in words, and how its answer is read.

    Attributes:
        name: the name of its adapter, its column in tables and its folder on disk.
        prompt: with the data set's columns in braces; a column that holds a list is written one item a line, each after
            its index.
        answer: column of the true answer; of a list, its first item counts.
        labels: for each class what may stand for it, in the order in which classes are looked for in an answer. A
            value of ``answer`` is a key, whose first word is learned, or one of the words, which is learned itself.
        scoring: ``label_words``: the class is the first that has a word in the answer; ``letter``: the answer begins
            with the class's letter; ``contains``: the answer contains the true one; ``word_f1``: F1 of their words;
            ``number``: Spearman's rho of the first number in each answer.
        case: of label words: ``keep`` it, ``lower`` both sides, or ``lower_answer`` alone.
        bounds: a number outside them counts as the nearer one.
        max_new_tokens: tokens of an answer at most.
        chat: whether the prompt is a turn in the model's chat template.
        hub: data set on the hub.
        config: its configuration.
        revision: its branch, tag or commit.
        files: the files of each split, where the data set does not say it.
        path: a local file or folder instead of ``hub``.
        splits: what train, val and test are called in the source. No val: a tenth of train is held out; no test:
            ``test_fraction`` of train is.
        test_fraction: share of train, drawn as `datasets.Dataset.train_test_split` does with seed 42.
        samples: examples of the test split that are used, drawn at random with seed 42; none: all.
        balanced: ``samples`` are of each class, and no more than the smallest class has.
    """

    name: str
    prompt: str
    answer: str = "output"
    labels: dict[str, list[str]] = field(default_factory=dict, hash=False)
    scoring: Literal["label_words", "letter", "contains", "word_f1", "number"] = "label_words"
    case: Literal["keep", "lower", "lower_answer"] = "keep"
    bounds: tuple[float, float] | None = None
    max_new_tokens: int = 10
    chat: bool = False
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    files: dict[str, str] | None = field(default=None, hash=False)
    path: str | None = None
    splits: dict[str, str | None] = field(
        default_factory=lambda: {"train": "train", "val": None, "test": "test"}, hash=False
    )
    test_fraction: float | None = None
    samples: int | None = None
    balanced: bool = False

    def __post_init__(self) -> None:
        check_task_name(self.name)
        for name, what in (("labels", "the words of each class"), ("splits", "what the splits are called")):
            if not isinstance(getattr(self, name), dict):
                raise self._error(f"{name} is {getattr(self, name)}; give a map, {what}, or leave {name} out")
        prompt_fields(self.prompt)
        for value, known, what in ((self.scoring, SCORINGS, "scoring"), (self.case, CASES, "case")):
            if value not in known:
                raise self._error(f"{what} {value!r} is none of {', '.join(known)}")
        if self.scoring in ("label_words", "letter") and len(self.labels) < 2:
            raise self._error(f"scoring {self.scoring} needs labels of at least two classes; it has {len(self.labels)}")
        empty = [key for key, words in self.labels.items() if not words or not all(words)]
        if empty:
            raise self._error(f"label {empty[0]!r} has no word, or an empty one; give what may stand for it")
        if (self.hub is None) == (self.path is None):
            raise self._error("give hub or path, where its examples are")
        if set(self.splits) - set(SPLITS) or not self.splits.get("train"):
            raise self._error(f"splits {self.splits} must name train, and may name val and test")
        if (self.splits.get("test") is None) != (self.test_fraction is not None):
            raise self._error("splits name no test; give test_fraction, or a test split, and not both")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise self._error(f"test_fraction is {self.test_fraction}; give a number between 0 and 1")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise self._error(f"bounds are {list(self.bounds)}; give the lower one first, for example [0, 5]")
        if self.balanced and not self.labels:
            raise self._error("balanced needs labels")
        for number in (self.max_new_tokens, 1 if self.samples is None else self.samples):
            if not isinstance(number, int) or number < 1:
                raise self._error(f"max_new_tokens and samples must be at least 1; one is {number}")

    def _error(self, problem: str) -> SheetbendError:
        return SheetbendError(f"task {self.name}: {problem}")

    @property
    def metric(self) -> str:
        """The name of the number that stands for the task: accuracy, f1 or spearman."""
        return {"word_f1": "f1", "number": "spearman"}.get(self.scoring, "accuracy")

    @property
    def words(self) -> list[list[str]]:
        """What may stand for each class, in order."""
        return list(self.labels.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first word of each class; empty for answers that are no classes."""
        return tuple(words[0] for words in self.words)

    def read(self, value: Any) -> tuple[str, int]:
        """Return the true answer in words and its class (0 where there are no classes).

        Raises:
            ValueError: it is empty, no number where one is scored, or none of the task's labels.

        >>> task = GenerationTask("ask", "{q}", labels={"0": ["no", "No"], "1": ["yes"]}, hub="org/name")
        >>> task.read(1), task.read(False), task.read(["No"])
        (('yes', 1), ('no', 0), ('No', 0))
        """
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        if is_empty(value):
            raise ValueError("is empty")
        if self.scoring == "number":
            if not _is_number(value):
                raise ValueError(f"is {value!r}, no number")
            return f"{float(value):.1f}", 0  # one decimal, as in the published evaluation
        text = str(int(value)) if isinstance(value, bool) else str(value).strip()
        if not self.labels:
            return text, 0
        keys = [str(key) for key in self.labels]
        # YAML makes True of a key true, which means the data's own.
        for spelled in [text, *([str(value), str(value).lower()] if isinstance(value, bool) else [])]:
            if spelled in keys:
                index = keys.index(spelled)
                return self.words[index][0], index
        for index, words in enumerate(self.words):
            folded = [word.casefold() for word in words]
            if text.casefold() in folded or (self.scoring == "letter" and text.casefold().startswith(tuple(folded))):
                return text, index
        known = ", ".join(f"{key} ({', '.join(words)})" for key, words in self.labels.items())
        raise ValueError(f"is {text!r}, none of its labels {known}")


def is_empty(value: Any) -> bool:
    """Return whether a cell of a table holds nothing: it is missing, no number (nan), or blank."""
    return value is None or value != value or not str(value).strip()


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


@cache
def families() -> dict[str, dict[str, GenerationTask]]:
    """Return the published tasks, {family: {task name: declaration}}; a family is made for one model."""
    facts = json.loads((files("datamodules") / "facts" / "generation.json").read_text(encoding="utf-8"))
    return {
        family: {name: GenerationTask(name=name, **_typed(entry)) for name, entry in declared["tasks"].items()}
        for family, declared in facts.items()
    }


def _typed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "bounds": tuple(entry["bounds"])} if "bounds" in entry else dict(entry)
