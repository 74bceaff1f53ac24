"""The seven tasks of GLUE on which AdaRank merges RoBERTa and GPT-2, with their metrics and splits."""

from collections.abc import Mapping

import numpy as np

from datamodules.published_text import PublishedText, PublishedTextDataModule, TextSource
from datamodules.sources.tables import Hub
from datamodules.tasks import Task
from datamodules.text import plain

ENTAILMENT = ("entailment", "not_entailment")


def _glue(
    name: str,
    columns: tuple[str, ...],
    class_names: tuple[str, ...],
    counts: tuple[int, int],
    metric: str = "accuracy",
    test: str = "validation",
) -> PublishedText:
    splits = {"train": "train", "val": "train", "test": test}
    words = tuple(plain(one) for one in class_names)
    return PublishedText(
        Task(name, class_names, metric=metric),
        (TextSource(Hub("nyu-mll/glue", name), columns, splits),),
        dict(zip(words, class_names, strict=True)),
        words,
        {"train": counts[0], test: counts[1]},
        128,
    )


GLUE_TASKS = {
    one.task.name: one
    for one in (
        _glue("cola", ("sentence",), ("unacceptable", "acceptable"), (8551, 1043), "matthews"),
        _glue("sst2", ("sentence",), ("negative", "positive"), (67349, 872)),
        _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), (3668, 408), "accuracy_and_f1"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), (363846, 40430), "accuracy_and_f1"),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            (392702, 9815),
            test="validation_matched",
        ),
        _glue("qnli", ("question", "sentence"), ENTAILMENT, (104743, 5463)),
        _glue("rte", ("sentence1", "sentence2"), ENTAILMENT, (2490, 277)),
    )
}


class GLUEDataModule(PublishedTextDataModule):
    """CoLA, SST-2, MRPC, QQP, MNLI, QNLI and RTE, each with its own labels.

    GLUE hides its test labels: test is its validation split (MNLI: the matched one), and val is the last tenth of its
    training split, permuted with numpy's ``RandomState(0)``, as published. CoLA is scored by Matthews' correlation,
    MRPC and QQP by the mean of accuracy and F1, the others by accuracy.
    """

    @classmethod
    def published(cls) -> dict[str, PublishedText]:
        """Return the declarations by task name."""
        return GLUE_TASKS

    def parts(self, task: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the published rows of train, val and test among the labelled examples of their source splits."""
        order = np.random.RandomState(0).permutation(sizes["train"])
        kept = int((1 - 0.1) * sizes["train"])
        return {"train": order[:kept], "val": order[kept:], "test": np.arange(sizes["test"])}
