"""How answers are read, against slow restatements of the published rules."""

import itertools

import numpy as np
import pytest
import torch

from datamodules.generation_tasks import families
from lightning_modules.answers import AnswerEvaluator, contains, first_number, lettered_class, named_class, word_f1
from lightning_modules.scores import headlines

FLAN, LLAMA, MISTRAL = families().values()


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        (MISTRAL["ethos"], "Not violence.", 0),  # tried before `violence`
        (MISTRAL["ethos"], "VIOLENCE", 1),
        (MISTRAL["sst2"], "POS", 1),  # the answer is made lower-case, and `pos` is a word
        (MISTRAL["disco"], "SINGLE_S_COORD_ANAPHORA", 0),  # contains single_s_coord, as in the published evaluation
        (MISTRAL["wino"], "", None),
        (FLAN["rte"], "YES", None),  # case is kept
        (FLAN["rte"], "it does not: yes", 0),  # `no` is in `not`
        (FLAN["piqa"], "Option 2", 0),
        (FLAN["hella"], "3", 3),
        (LLAMA["rte"], "YES", 1),
        (LLAMA["copa"], "CHOICE1", 1),
        (LLAMA["cb"], "perhaps", None),
    ],
)
def test_the_first_class_with_a_word_in_the_answer_counts(task, answer, expected):
    assert named_class(answer, task.words, task.case) == expected


@pytest.mark.parametrize("case", ["keep", "lower", "lower_answer"])
def test_named_class_is_the_published_search(case):
    words = [["Not a", "B"], ["a", "c"], ["C", "b c"]]
    for answer in map(" ".join, itertools.product(["", "a", "B", "C", "Not a"], repeat=2)):
        text = answer if case == "keep" else answer.lower()
        hits = [
            i for i, forms in enumerate(words) for form in forms if (form.lower() if case == "lower" else form) in text
        ]
        assert named_class(answer, words, case) == (min(hits) if hits else None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("(a) x", 0), ("B", 1), ("  c)", 2), ("(d)", None), ("", None), ("(a", None), ("At home", 0)],
)
def test_letters(answer, expected):
    assert lettered_class(answer, 3) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("4.5", 4.5), (".5", 0.5), ("about -1.5", -1.5), ("1-5", 1), ("sim -4", 4), ("none", 0), ("3.", 3)],
)
def test_the_first_number_counts(answer, expected):
    assert first_number(answer) == expected


def test_words_and_containment():
    assert word_f1("a B c", "b d") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert word_f1("", "b") == word_f1("a", "") == 0
    assert contains("The Breast Cancer gene", " breast cancer ") and not contains("", "x")


def test_each_kind_of_task_has_its_metric():
    evaluator = AnswerEvaluator([FLAN["rte"], FLAN["stsb"], MISTRAL["qasc"], MISTRAL["dream"], MISTRAL["gap"]])
    none = torch.zeros(2, dtype=torch.int64)
    assert evaluator.update("v", "rte", ["yes", "maybe"], torch.tensor([1, 1]), ["yes", "yes"]) == [1, 0]
    assert evaluator.update("v", "qasc", ["water", "a cycle"], none, ["water", "cycle"]) == [1, pytest.approx(2 / 3)]
    assert evaluator.update("v", "dream", ["(C)", "a"], torch.tensor([2, 1]), ["(C) x", "(B) y"]) == [1, 0]
    assert evaluator.update("v", "gap", ["Anna.", "he"], none, ["anna", "she"]) == [1, 0]
    assert evaluator.update("v", "rte", ["no"], torch.tensor([0]), ["no"]) == [1]
    scores = {score.task: score for score in evaluator.scores()}
    assert (scores["rte"].metric, scores["rte"].value, scores["rte"].count) == ("accuracy", pytest.approx(2 / 3), 3)
    assert (scores["qasc"].metric, scores["qasc"].value) == ("f1", pytest.approx(5 / 6))
    assert headlines(evaluator.scores()) == {"rte": "accuracy", "qasc": "f1", "dream": "accuracy", "gap": "accuracy"}


def ranks(values):
    """Mean places of equal values in ascending order."""
    return [np.mean([place for place, other in enumerate(sorted(values)) if other == value]) for value in values]


def test_stsb_is_spearman_over_the_whole_task():
    answers = ["4.0", "about 2", "nothing", "5", "3.5", "2", "9"]
    references = ["4.2", "1.0", "0.4", "4.2", "2.8", "2.0", "5.0"]
    for task, bound in ((FLAN["stsb"], 9), (LLAMA["stsb"], 5)):
        evaluator = AnswerEvaluator([task])
        for part in (slice(0, 3), slice(3, 7)):
            evaluator.update("v", "stsb", answers[part], torch.zeros(len(answers[part])), references[part])
        (score,) = evaluator.scores()
        numbers = [4, 2, 0, 5, 3.5, 2, bound]
        assert (score.metric, score.count) == ("spearman", 7)
        assert score.value == pytest.approx(
            np.corrcoef(ranks(numbers), ranks([float(text) for text in references]))[0, 1], abs=1e-6
        )


def test_a_model_that_always_says_the_same_number_has_no_correlation():
    evaluator = AnswerEvaluator([FLAN["stsb"]])
    evaluator.update("v", "stsb", ["3", "3", "3"], torch.zeros(3), ["1.0", "2.0", "3.0"])
    assert evaluator.scores()[0].value == 0
