"""The six tasks of natural language inference on which KnOTS merges Llama-3-8B, with its labels and splits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from datamodules.published_text import PublishedText, PublishedTextDataModule, TextSource
from datamodules.sources.tables import PARQUET_COPY, Hub, column
from datamodules.tasks import Task
from mergers.errors import SheetbendError

# One label space; a task without one of the classes never chooses it.
CLASSES = ("entailment", "neutral", "contradiction")
THREE = {name: name for name in CLASSES}
# "Not entailment" may be neutral too; the published experiments take the last label for it.
TWO = {"entailment": "entailment", "not entailment": "contradiction"}
OWN_SPLITS = {"train": "train", "val": "validation", "test": "test"}
CUT_VALIDATION = {"train": "train", "val": "validation", "test": "validation"}
CUT_MATCHED = {"train": "train", "val": "validation_matched", "test": "validation_matched"}


@dataclass(frozen=True)
class NLIText(PublishedText):
    """A task of natural language inference.

    Attributes:
        validation: share of the source's validation split that is val, the rest being test; none: the source has both.
        shuffled: whether that share is drawn at random (seed 42), or is the end of the split.
    """

    validation: float | None = None
    shuffled: bool = False


def _task(name: str, absent: tuple[str, ...] = ()) -> Task:
    return Task(name, CLASSES, label_set="nli", absent=absent)


def _setfit(name: str, validation_file: str = "validation*.jsonl") -> TextSource:
    """Return the copy that the published code reads."""
    files = {"train": "train.jsonl", "validation": validation_file}
    return TextSource(Hub(f"SetFit/{name}", files=files), ("text1", "text2"), CUT_VALIDATION)


def _glue(name: str, columns: tuple[str, str], splits: Mapping[str, str] = CUT_VALIDATION) -> TextSource:
    return TextSource(Hub("nyu-mll/glue", name), columns, splits)


def _parquet_copy(name: str, config: str) -> Hub:
    files = {split: f"{config}/{split}/*.parquet" for split in ("train", "validation", "test")}
    return Hub(name, revision=PARQUET_COPY, files=files)


NLI_TASKS = {
    one.task.name: one
    for one in (
        NLIText(
            _task("snli"),
            (TextSource(Hub("stanfordnlp/snli"), ("premise", "hypothesis"), OWN_SPLITS),),
            THREE,
            CLASSES,
            {"train": 550152, "validation": 10000, "test": 10000},
            2000,
        ),
        NLIText(
            _task("mnli"),
            (
                _setfit("mnli", "validation_matched.jsonl"),
                _glue("mnli", ("premise", "hypothesis"), CUT_MATCHED),
            ),
            THREE,
            CLASSES,
            {"train": 392702, "validation": 9815},
            2000,
            validation=0.2,
        ),
        NLIText(
            _task("sick"),
            (TextSource(_parquet_copy("RobZamp/sick", "default"), ("sentence_A", "sentence_B"), OWN_SPLITS),),
            THREE,
            CLASSES,
            {"train": 4439, "validation": 495, "test": 4906},
            2000,
        ),
        NLIText(
            _task("qnli", absent=("neutral",)),
            (_setfit("qnli"), _glue("qnli", ("question", "sentence"))),
            TWO,
            tuple(TWO),
            {"train": 104743, "validation": 5463},
            2000,
            validation=0.2,
            shuffled=True,
        ),
        NLIText(
            _task("rte", absent=("neutral",)),
            (_setfit("rte"), _glue("rte", ("sentence1", "sentence2"))),
            TWO,
            tuple(TWO),
            {"train": 2490, "validation": 277},
            2000,
            validation=0.5,
            shuffled=True,
        ),
        NLIText(
            _task("scitail", absent=("contradiction",)),
            (TextSource(_parquet_copy("allenai/scitail", "tsv_format"), ("premise", "hypothesis"), OWN_SPLITS),),
            {"entails": "entailment", "neutral": "neutral"},
            ("entails", "neutral"),
            {"train": 23097, "validation": 1304, "test": 2126},
            1000,
        ),
    )
}


class NLIDataModule(PublishedTextDataModule):
    """SNLI, MNLI, SICK, QNLI, RTE and SciTail in one label space: entailment, neutral, contradiction.

    QNLI and RTE know no neutral (their "not entailment" counts as contradiction) and SciTail knows no contradiction;
    what a task does not know is left out of its choice. MNLI, QNLI and RTE have no public test labels: val and test are
    cut from their validation splits as published.

    Args:
        tasks: snli, mnli, sick, qnli, rte, scitail.
        root: a folder with a local copy of each task, ``<root>/<task>``: parquet, jsonl or csv by split as on the hub,
            or SICK.txt, snli_1.0_*.jsonl, scitail_1.0_*.tsv. None: the hub.
        max_length: tokens at which pairs are cut; none takes the published 2000 (scitail: 1000). The model's limit
            holds besides.
        from_glue: read mnli, qnli and rte from nyu-mll/glue in the place of SetFit's copies, which the paper used.
        batch_size: training pairs in a batch.
        eval_batch_size: pairs in a validation or test batch.
        batches_per_epoch: training batches of each task in an epoch; none: one pass.
        num_workers: processes that load batches.
        seed: of the order of training examples.
    """

    def __init__(
        self,
        tasks: list[str],
        root: str | None = None,
        max_length: int | None = None,
        from_glue: bool = False,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        self.from_glue = from_glue
        super().__init__(tasks, root, max_length, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)

    @classmethod
    def published(cls) -> dict[str, PublishedText]:
        """Return the declarations by task name."""
        return NLI_TASKS

    def source(self, task: str) -> TextSource:
        """Return where ``task`` is read from on the hub."""
        return NLI_TASKS[task].sources[-1 if self.from_glue else 0]

    def parts(self, task: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the published rows of train, val and test among the labelled examples of their source splits."""
        declared = NLI_TASKS[task]
        if declared.validation is None:
            return {name: np.arange(size) for name, size in sizes.items()}
        if sizes["val"] < 2:
            raise SheetbendError(
                f"task {task}: its validation split has {sizes['val']} labelled examples; it is cut into val and test "
                "and needs at least 2"
            )
        # The library that cut them first cuts them again, so that the very same pairs are val. Its "train" is test.
        rows = Dataset.from_dict({"row": np.arange(sizes["val"])})
        cut = rows.train_test_split(declared.validation, shuffle=declared.shuffled, seed=42)
        val, test = (np.array(column(cut[part], "row")) for part in ("test", "train"))
        return {"train": np.arange(sizes["train"]), "val": val, "test": test}
