"""What a generated answer says, and how right it is: pure functions, and the metrics that they fill.

The rules are those of STAR's evaluation (Lee et al., 2025, arXiv 2502.10339). Two of its slips are left out: it
compares the words of a qasc answer with the letters of the reference, and scores each batch of hella and boolq against
the label of the batch's first example.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, SpearmanCorrCoef
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.metrics import Meter

# A sign counts before a decimal point only: in "similarity -4" and "1-5" it is a dash.
_NUMBER = re.compile(r"[+-]?\d*\.\d+|\d+")


def named_class(answer: str, words: Sequence[Sequence[str]], case: str = "keep") -> int | None:
    """Return the first class that has a word which the answer contains, or none.

    Args:
        answer: generated text.
        words: what may stand for each class; the order of the classes is that in which they are looked for.
        case: ``keep`` compares as it stands, ``lower`` makes answer and words lower-case, ``lower_answer`` the
            answer alone.

    >>> named_class("That is not violence.", [["not violence"], ["violence"]])
    0
    >>> named_class("Yes.", [["no"], ["yes"]]), named_class("Yes.", [["no"], ["yes"]], case="lower")
    (None, 1)
    """
    text = answer if case == "keep" else answer.lower()
    for index, forms in enumerate(words):
        if any((form.lower() if case == "lower" else form) in text for form in forms):
            return index
    return None


def lettered_class(answer: str, classes: int) -> int | None:
    """Return the class whose letter, bare or in brackets, begins the answer, or none; case does not matter.

    >>> lettered_class("(B) At the station.", 3), lettered_class("c", 3), lettered_class("(D)", 3)
    (1, 2, None)
    """
    text = answer.strip().lower()
    for index in range(classes):
        letter = chr(ord("a") + index)
        if text.startswith((letter, f"({letter})")):
            return index
    return None


def first_number(answer: str, bounds: tuple[float, float] | None = None) -> float:
    """Return the first number in the answer, 0 where there is none, cut to ``bounds``.

    >>> first_number("about 3.8 of 5"), first_number("similar"), first_number("30", bounds=(0, 5))
    (3.8, 0.0, 5.0)
    """
    found = _NUMBER.search(answer)
    value = float(found.group()) if found else 0.0
    return value if bounds is None else float(min(max(value, bounds[0]), bounds[1]))


def word_f1(answer: str, reference: str) -> float:
    """Return F1 between the sets of lower-case words of answer and reference.

    >>> word_f1("The water cycle", "water cycle")
    0.8
    """
    given, true = set(answer.lower().split()), set(reference.lower().split())
    common = len(given & true)
    return 2 * common / (len(given) + len(true)) if common else 0.0


def contains(answer: str, reference: str) -> bool:
    """Return whether the answer contains the reference; case does not matter.

    >>> contains("It is breast cancer.", "Breast cancer"), contains("", "cancer")
    (True, False)
    """
    return reference.strip().lower() in answer.lower()


def read_answer(task: Any, answer: str, label: int, reference: str) -> float:
    """Return what the answer is worth: 1 or 0 where it is right or wrong, F1 for words, the number for numbers.

    Args:
        task: has ``scoring`` (``label_words``, ``letter``, ``contains``, ``word_f1`` or ``number``), ``words`` and
            ``case`` for label words, ``bounds`` for numbers.
        answer: generated text.
        label: index of the true class, for the scorings by class.
        reference: the true text, for the others.
    """
    if task.scoring == "label_words":
        return float(named_class(answer, task.words, task.case) == label)
    if task.scoring == "letter":
        return float(lettered_class(answer, len(task.words)) == label)
    if task.scoring == "contains":
        return float(contains(answer, reference))
    if task.scoring == "word_f1":
        return word_f1(answer, reference)
    return first_number(answer, task.bounds)


class Spearman(SpearmanCorrCoef):
    """Spearman's rho, 0 where all numbers on one side are equal."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it keeps every number, and says so each time; a task has few
            super().__init__()

    def compute(self) -> Tensor:
        """Return rho, a scalar."""
        given, true = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        if len(given.unique()) == 1 or len(true.unique()) == 1:
            return torch.zeros(())
        return super().compute()


class AnswerEvaluator(Meter):
    """Each task's metric of its generated answers, for each variant.

    Args:
        tasks: objects with ``name``, ``metric`` and what `read_answer` needs.
    """

    def __init__(self, tasks: Sequence[Any]):
        super().__init__()
        self.tasks = {task.name: task for task in tasks}

    def seen(self, variant: str, task: str) -> int:
        """Return how many answers of ``variant`` have been counted."""
        return self._seen.get((variant, task, self.tasks[task].metric), 0)

    def update(
        self, variant: str, task: str, answers: Sequence[str], labels: Tensor, references: Sequence[str]
    ) -> list[float]:
        """Count one batch; return what each answer is worth.

        Args:
            variant: name of the weights that gave the answers.
            task: name of the task that the batch came from.
            answers: N generated texts.
            labels: (N,) int64 true classes.
            references: N true texts.
        """
        own = self.tasks[task]
        triples = zip(answers, labels.tolist(), references, strict=True)
        worth = [read_answer(own, answer, label, reference) for answer, label, reference in triples]
        # On the CPU in float64: ranks of Spearman must not depend on rounding.
        values = [torch.tensor(worth, dtype=torch.float64)]
        if own.metric == "spearman":
            values.append(torch.tensor([float(reference) for reference in references], dtype=torch.float64))
        self.count(variant, task, own.metric, _metric(own.metric), values, len(answers))
        return worth


def _metric(name: str) -> type[Metric]:
    return Spearman if name == "spearman" else MeanMetric
