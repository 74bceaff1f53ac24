"""Tasks answered in words: the 46 of STAR (Lee et al., 2025, arXiv 2502.10339), and one's own."""

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset

from datamodules.base import SPLITS, TaskDataModule
from datamodules.generation_tasks import GenerationTask, families, is_empty
from datamodules.own_data import without_repeats
from datamodules.prompts import PromptTokens, prompt_fields, render
from datamodules.sources.tables import Hub, column, read_table, require_columns
from mergers.errors import SheetbendError, did_you_mean
from mergers.seeding import derive_seed

PUBLISHED_SEED = 42
HELD_OUT = 0.1  # share of the training split that is validation where the data set has none


def balanced_sample(labels: Sequence[Any], each: int, seed: int = PUBLISHED_SEED) -> list[int]:
    """Return rows with equally many of each label: ``each``, or what the rarest label has.

    Labels come in the order in which they first appear, and rows are those of STAR's published evaluation.

    >>> balanced_sample(["b", "a", "b", "b"], each=2)
    [3, 1]
    """
    rows: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    count = min(each, *(len(of) for of in rows.values())) if rows else 0
    generator = random.Random(seed)
    return [row for of in rows.values() for row in generator.sample(of, count)]


def plain_sample(size: int, count: int | None, seed: int = PUBLISHED_SEED) -> list[int]:
    """Return ``count`` of ``size`` rows at random, those of STAR's published evaluation; all in order for none."""
    if count is None or count >= size:
        return list(range(size))
    return random.Random(seed).sample(range(size), count)


@dataclass(frozen=True)
class Examples:
    """Questions and their true answers; ``labels`` are classes, or 0."""

    prompts: list[str]
    answers: list[str]
    labels: list[int]

    def take(self, rows: Sequence[int]) -> "Examples":
        """Return the examples at ``rows``."""
        return Examples(*([values[row] for row in rows] for values in (self.prompts, self.answers, self.labels)))


class GenerationSplit:
    """A split of a task that is answered in words.

    Args:
        examples: questions and answers.
        tokens: what makes token ids of them.
        training: whether batches are to be learned from; else they are to be answered, and carry references.
    """

    def __init__(self, examples: Examples, tokens: PromptTokens, training: bool):
        self.examples = examples
        self.labels = torch.tensor(examples.labels, dtype=torch.int64)
        self.references = examples.answers
        self._tokens = tokens
        # Evaluation visits its few examples again and again, training its many perhaps never.
        whole = None if training else tokens.prompts(examples.prompts)
        self._ids = None if whole is None else [tokens.cut(ids) for ids in whole]
        self.shortened = sum(len(ids) > len(cut) for ids, cut in zip(whole or (), self._ids or (), strict=True))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def batch(self, indices: list[int]) -> tuple:
        """Return what `datamodules.tasks.TaskBatch` holds after the task's name.

        For training: inputs (``input_ids``, ``attention_mask``, ``labels``) and the same labels, int64 (B, M), -100
        where nothing is to be learned; see `PromptTokens.training`. For evaluation: prompts (``input_ids``,
        ``attention_mask``), classes (B,), and the true answers.
        """
        some = self.examples.take(indices)
        if self._ids is None:
            inputs, labels = self._tokens.training(some.prompts, some.answers)
            return {**inputs, "labels": labels}, labels
        return self._tokens.evaluation([self._ids[index] for index in indices]), self.labels[indices], some.answers

    def example_keys(self) -> list[bytes]:
        """Return a hash of each prompt."""
        return [hashlib.sha256(prompt.encode()).digest() for prompt in self.examples.prompts]

    def eval_order(self) -> list[int]:
        """Return the longest prompts first, so that too large a batch shows at once."""
        lengths = [len(ids) for ids in self._ids] if self._ids else [len(prompt) for prompt in self.examples.prompts]
        return sorted(range(len(lengths)), key=lambda index: -lengths[index])


class GenerationDataModule(TaskDataModule):
    """STAR's generation tasks for one model, and one's own.

    Test examples are those of the published evaluation. Validation examples come from the data set's own validation
    split where that is not the test, else from a tenth of its training prompts that is not trained on.

    Args:
        tasks: names of the tasks, in the order of tables and turns.
        family: whose published tasks can be named: ``flan_t5`` (13), ``llama_instruct`` (13) or ``mistral_instruct``
            (20).
        own_tasks: declarations of one's own tasks, to be named in ``tasks`` too.
        root: folder with one local copy a task, ``<root>/<task name>``; none: the hub.
        samples: test examples instead of the declared number (of each class, where the declaration is balanced): one
            number, or a map from task name to number.
        val_samples: validation examples at most; none: all.
        train_samples: training examples at most; none: all.
        chat: whether prompts are turns of a chat; none: as declared.
        batch_size: examples in a training batch.
        eval_batch_size: examples in a validation or test batch; results do not depend on it.
        batches_per_epoch: training batches of each task in an epoch; see `TaskDataModule`.
        num_workers: processes that load batches.
        seed: of the order of training examples; see `TaskDataModule`.
    """

    gives = "questions"

    def __init__(
        self,
        tasks: list[str],
        family: Literal["flan_t5", "llama_instruct", "mistral_instruct"] | None = None,
        own_tasks: list[GenerationTask] | None = None,
        root: str | None = None,
        samples: int | dict[str, int] | None = None,
        val_samples: int | None = 200,
        train_samples: int | None = None,
        chat: bool | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        if family is not None and family not in families():
            raise SheetbendError(
                f"data.family {family!r} is none of {', '.join(families())}{did_you_mean(family, list(families()))}"
            )
        self.family = family
        self.own_tasks = list(own_tasks or [])
        self.root = root
        self.samples = samples
        self.val_samples = val_samples
        self.train_samples = train_samples
        self.chat = chat
        # Published data sets repeat prompts across their splits; one's own should not.
        self.overlap = "refuse" if family is None else "report"
        self._tokens: dict[str, PromptTokens] = {}
        counts = samples.values() if isinstance(samples, dict) else [samples]
        for name, value in [
            ("val_samples", val_samples),
            ("train_samples", train_samples),
            *(("samples", n) for n in counts),
        ]:
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SheetbendError(f"data.{name} is {value}; give a number of at least 1, or nothing for all")
        super().__init__(tasks, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)
        odd = [name for name in samples if name not in tasks] if isinstance(samples, dict) else []
        if odd:
            raise SheetbendError(f"data.samples names {odd[0]!r}, which is none of data.tasks ({', '.join(tasks)})")

    def task_table(self) -> dict[str, GenerationTask]:
        """Return the tasks of the family and one's own, by name."""
        table = dict(families()[self.family]) if self.family else {}
        for task in self.own_tasks:
            if task.name in table:
                raise SheetbendError(f"data.own_tasks: the name {task.name!r} is taken; choose another")
            table[task.name] = task
        if not table:
            raise SheetbendError(
                f"data.family is not given; choose one ({', '.join(families())}), or declare tasks in data.own_tasks"
            )
        return table

    def check(self, task: str) -> None:
        """Refuse a local copy that is not there."""
        source = self.source(self.task_table()[task])
        if isinstance(source, Path) and not source.exists():
            raise SheetbendError(f"task {task}: {source} is not there; put its data there, or name another place")

    def source(self, task: GenerationTask) -> Hub | Path:
        """Return where the examples of ``task`` are."""
        if task.path is not None:
            return Path(task.path).expanduser()
        if self.root is not None:
            folder = Path(self.root).expanduser() / task.name
            # A copy of the whole data set has a folder for each of its configurations.
            return folder / task.config if task.config and (folder / task.config).is_dir() else folder
        return Hub(task.hub, task.config, task.revision, task.files)

    def sources(self, task: str) -> dict[str, tuple[Hub | Path, str]]:
        """Return which split of which source each split is read from."""
        declared = self.task_table()[task]
        source = self.source(declared)
        return {name: (source, declared.splits.get(name) or declared.splits["train"]) for name in SPLITS}

    def attach(self, module: Any) -> None:
        """Take the tokenizer of ``module``, its architecture (seq2seq or causal) and its limit of length.

        Raises:
            SheetbendError: the model takes no questions, or its tokenizer cannot write the prompts of a task or end its
                answers.
        """
        super().attach(module)
        if self.num_workers:
            # Workers are forked from a process that has tokenised, and tokenise themselves.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        made = {}
        for task in self.tasks:
            chat = task.chat if self.chat is None else self.chat
            try:
                room = task.max_new_tokens
                tokens = PromptTokens(module.tokenizer, module.architecture, module.max_length, chat, room)
            except SheetbendError as error:
                raise SheetbendError(f"task {task.name}: {error}") from None
            made[task.name] = tokens
        self._tokens = made
        self.prepared_with((module.tokenizer, module.architecture, module.max_length))

    def load(self, task: str) -> dict[str, GenerationSplit]:
        """Return the splits of one task; after `attach`."""
        if task not in self._tokens:
            raise SheetbendError(f"task {task}: prompts need the tokenizer of a model; call attach(model) before setup")
        examples = self.examples(task)
        splits = {name: GenerationSplit(examples[name], self._tokens[task], name == "train") for name in SPLITS}
        for name in ("val", "test"):
            if splits[name].shortened:
                self.note(
                    task,
                    f"{splits[name].shortened} of {len(splits[name])} {name} prompts are longer than "
                    f"{self._tokens[task].max_length} tokens and shortened.",
                )
        return splits

    def examples(self, name: str) -> dict[str, Examples]:
        """Return the questions and answers of each split of one task."""
        task = self.task_table()[name]
        train = self._read(task, "train", self._table(task, "train"))
        if task.splits.get("test") is None:
            if not self._published(task):
                train = train.take(without_repeats(self, name, train.prompts, "examples repeat the prompt of another"))
            train, test = self._cut(task, train)
        else:
            test = self._read(task, "test", self._table(task, "test"))
        if task.splits.get("val") is None:
            train, val = hold_out(train, HELD_OUT, derive_seed("held out", task.name))
        else:
            val = self._read(task, "val", self._table(task, "val"))
        override = self.samples.get(name) if isinstance(self.samples, dict) else self.samples
        count = task.samples if override is None else override
        chosen = balanced_sample(test.labels, count) if task.balanced else plain_sample(len(test.labels), count)
        seeds = {part: derive_seed("sample", name, part) for part in ("train", "val")}
        found = {
            "train": train.take(plain_sample(len(train.labels), self.train_samples, seeds["train"])),
            "val": val.take(plain_sample(len(val.labels), self.val_samples, seeds["val"])),
            "test": test.take(chosen),
        }
        for part, some in found.items():
            if not some.prompts:
                raise SheetbendError(f"task {name}: its {part} split is empty; give a source with more examples")
        return found

    def _published(self, task: GenerationTask) -> bool:
        """Return whether ``task`` is of the family, not one's own; its examples are those of the published code."""
        return self.family is not None and task.name in families()[self.family]

    def _cut(self, task: GenerationTask, examples: Examples) -> tuple[Examples, Examples]:
        """Return train and test as datasets.load_dataset(...)["train"].train_test_split gives them."""
        rows = Dataset.from_dict({"row": range(len(examples.prompts))})
        try:
            parts = rows.train_test_split(test_size=task.test_fraction, seed=PUBLISHED_SEED)
        except ValueError:  # one of the two would be empty
            raise SheetbendError(
                f"task {task.name}: of {len(examples.prompts)} different examples, test_fraction {task.test_fraction} "
                "leaves train or test none; give more examples, or another share"
            ) from None
        return tuple(examples.take(column(parts[part], "row")) for part in ("train", "test"))

    def _table(self, task: GenerationTask, split: str) -> Dataset:
        return read_table(self.source(task), task.splits[split])

    def _read(self, task: GenerationTask, split: str, table: Dataset) -> Examples:
        fields = prompt_fields(task.prompt)
        require_columns(table, [*fields, task.answer], f"task {task.name}: its {split} split")
        columns = {name: column(table, name) for name in fields}
        for name, values in columns.items():
            # In published data a field may be blank: the rest of the prompt is still asked.
            blank = (value is None if self._published(task) else is_empty(value) for value in values)
            row = next((row for row, one in enumerate(blank, 1) if one), None)
            if row is not None:
                raise SheetbendError(
                    f"task {task.name}: {name} of row {row} of its {split} split is empty; fill it "
                    "in, or leave the row out"
                )
        prompts = render(task.prompt, columns, len(table))
        answers, labels = [], []
        for row, value in enumerate(column(table, task.answer), 1):
            try:
                text, label = task.read(value)
            except ValueError as error:
                raise SheetbendError(
                    f"task {task.name}: {task.answer} of row {row} of its {split} split {error}; mend the row or the "
                    "task's labels"
                ) from None
            answers.append(text)
            labels.append(label)
        return Examples(prompts, answers, labels)


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Split off ``share`` of the examples at random; equal prompts stay together.

    Returns:
        What is left, and what is held out, each in its order.
    """
    prompts = list(dict.fromkeys(examples.prompts))
    taken = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts))))) if len(prompts) > 1 else ()
    inside = [prompt in taken for prompt in examples.prompts]
    rows = range(len(inside))
    return examples.take([row for row in rows if not inside[row]]), examples.take([row for row in rows if inside[row]])
