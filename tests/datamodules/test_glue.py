"""The seven GLUE tasks in the hub's format, with the published splits."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from datamodules.glue import GLUE_TASKS, GLUEDataModule
from tests.text_stand_ins import text_model

COUNT = 33


def hub_split(task, split, count, seed):
    """A split as nyu-mll/glue has it."""
    declared = GLUE_TASKS[task]
    columns = declared.sources[0].columns
    generator = np.random.default_rng(seed)
    rows = {name: [f"{split} {name} {i}" for i in range(count)] for name in columns}
    rows["label"] = generator.integers(0, len(declared.codes), count).tolist()
    rows["idx"] = list(range(count))
    features = {name: Value("string") for name in columns}
    features |= {"label": ClassLabel(names=list(declared.task.class_names)), "idx": Value("int32")}
    return Dataset.from_dict(rows, features=Features(features))


def hub_folder(root, task):
    splits = set(GLUE_TASKS[task].sources[0].splits.values())
    tables = {split: hub_split(task, split, COUNT, seed) for seed, split in enumerate(sorted(splits))}
    if task == "mnli":
        tables["validation_mismatched"] = hub_split(task, "other", 5, 9)
    for split, table in tables.items():
        path = root / task / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
    return tables


def loaded(tasks, root):
    module = GLUEDataModule(tasks, root=str(root))
    module.attach(text_model())
    module.setup()
    return module


def test_splits_and_labels(tmp_path):
    """Held against the published rule, written out."""
    tables = {task: hub_folder(tmp_path, task) for task in GLUE_TASKS}
    module = loaded(list(GLUE_TASKS), tmp_path)
    order = np.random.RandomState(seed=0).permutation(COUNT).tolist()
    for task, declared in GLUE_TASKS.items():
        test = "validation_matched" if task == "mnli" else "validation"
        rows = {"train": ("train", order[:29]), "val": ("train", order[29:]), "test": (test, range(COUNT))}
        for ours, (theirs, picked) in rows.items():
            split, table = module.split(task, ours), tables[task][theirs].select(picked)
            assert split.labels.tolist() == list(table["label"])
            for got, name in zip(split.texts.columns, declared.sources[0].columns, strict=True):
                assert got.to_pylist() == list(table[name])
            assert split.max_length == 128


def test_metrics_and_names():
    metrics = {name: one.task.metric for name, one in GLUE_TASKS.items()}
    assert metrics == {
        "cola": "matthews",
        "sst2": "accuracy",
        "mrpc": "accuracy_and_f1",
        "qqp": "accuracy_and_f1",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
    }
    # F1 is of the second class.
    assert [GLUE_TASKS[name].task.class_names[1] for name in ("mrpc", "qqp")] == ["equivalent", "duplicate"]
    for task in GLUE_TASKS.values():
        assert sorted(set(task.positions().values()) - {-1}) == list(range(len(task.task.class_names)))


def test_blank_examples_are_left_out_after_the_cut_and_counted(tmp_path):
    """Of a pair, one text may be blank; the others stay where the published cut puts them."""
    table = hub_split("qqp", "train", COUNT, 0)
    blank = {"question1": ["", " "], "question2": ["", "x"]}
    texts = {name: [*blank[name], *table[name][2:]] for name in blank}
    for name, values in texts.items():
        table = table.remove_columns(name).add_column(name, values)
    DatasetDict(train=table, validation=hub_split("qqp", "validation", COUNT, 1)).save_to_disk(str(tmp_path / "qqp"))
    module = loaded(["qqp"], tmp_path)
    order = np.random.RandomState(0).permutation(COUNT)
    kept = [row for row in order[: int((1 - 0.1) * COUNT)] if row != 0]
    held = [row for row in order[int((1 - 0.1) * COUNT) :] if row != 0]
    for name, rows in (("train", kept), ("val", held)):
        expected = [(texts["question1"][row], texts["question2"][row]) for row in rows]
        assert list(zip(*(one.to_pylist() for one in module.split("qqp", name).texts.columns), strict=True)) == expected
    assert sum("1 of" in one and "examples are blank and left out" in one for one in module.caveats) == 1


@pytest.mark.parametrize("task", ["cola", "qqp"])
def test_saved_to_disk(tmp_path, task):
    """The published code reads what `save_to_disk` wrote."""
    tables = {split: hub_split(task, split, COUNT, seed) for seed, split in enumerate(("train", "validation"))}
    DatasetDict(tables).save_to_disk(str(tmp_path / task))
    split = loaded([task], tmp_path).split(task, "test")
    assert split.labels.tolist() == list(tables["validation"]["label"])
