"""One's own tables of texts: each kind of file, how labels are read, how splits are cut."""

import json
from itertools import chain

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from jsonargparse import ArgumentParser

from datamodules.sources.tables import read_table
from datamodules.text_tables import TextTable, TextTableDataModule
from mergers import SheetbendError
from tests.text_stand_ins import text_model

MOODS = ["good", "bad", "so so"]


def rows(count=60, start=0, labels=MOODS):
    return [
        {"text": f"text {i}", "other": f"more {i}", "mood": labels[i % len(labels)], "who": f"person {i // 4}"}
        for i in range(start, start + count)
    ]


def write(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_list(examples)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in examples))
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_pandas().to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def loaded(tables, **options):
    module = TextTableDataModule(tables, **options)
    module.attach(text_model())
    module.setup()
    return module


def examples(split):
    return list(zip(*(one.to_pylist() for one in split.texts.columns), split.labels.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("text", ["text", ["text", "other"]])
def test_one_file(tmp_path, kind, text):
    """Cut into three parts, each with its share of every class; nothing is lost."""
    path = write(tmp_path / f"mine.{kind}", rows())
    module = loaded({"moods": TextTable(text, "mood", path, val=0.1, test=0.3)})
    assert module.tasks[0].class_names == ("bad", "good", "so so") and module.tasks[0].label_set is None
    found = {name: examples(module.split("moods", name)) for name in ("train", "val", "test")}
    assert [len(one) for one in found.values()] == [36, 6, 18]
    for one in found.values():
        assert np.bincount([label for *_, label in one]).tolist() == [len(one) // 3] * 3
    columns = [text] if isinstance(text, str) else text
    expected = {(*(row[name] for name in columns), sorted(MOODS).index(row["mood"])) for row in rows()}
    assert set(chain(*found.values())) == expected
    again = loaded({"moods": TextTable(text, "mood", path, val=0.1, test=0.3)}, seed=5)
    assert again.fingerprints() == module.fingerprints()


@pytest.mark.parametrize("where", ["folder", "files", "save_to_disk"])
def test_given_splits(tmp_path, where):
    """Given splits stay as they are; what is not given comes from train."""
    train, test = rows(40), rows(10, start=100)
    if where == "save_to_disk":
        DatasetDict(mine=Dataset.from_list(train), other=Dataset.from_list(test)).save_to_disk(str(tmp_path / "d"))
        table = TextTable("text", "mood", str(tmp_path / "d"), splits={"train": "mine", "test": "other"})
    else:
        paths = {"train": write(tmp_path / "train.csv", train), "test": write(tmp_path / "later.jsonl", test)}
        folder = {"path": str(tmp_path), "splits": {"train": "train", "test": "later"}}
        table = TextTable("text", "mood", **(folder if where == "folder" else {"splits": paths}))
    module = loaded({"moods": table})
    assert [text for text, _ in examples(module.split("moods", "test"))] == [row["text"] for row in test]
    kept = {text for name in ("train", "val") for text, _ in examples(module.split("moods", name))}
    assert kept == {row["text"] for row in train} and 3 <= len(module.split("moods", "val")) <= 5


@pytest.mark.parametrize(
    ("labels", "names", "classes", "meaning"),
    [
        ([1, 0, 2], None, ("0", "1", "2"), [1, 0, 2]),
        ([10, 9, 2], None, ("2", "9", "10"), [2, 1, 0]),
        ([1, 0, 2], ["no", "yes", "maybe"], ("no", "yes", "maybe"), [1, 0, 2]),
        (["1", "0", "2"], ["no", "yes", "maybe"], ("no", "yes", "maybe"), [1, 0, 2]),
        ([1, 0, 2], ["2", "1", "0"], ("2", "1", "0"), [1, 2, 0]),
        (["b", "a", "c"], ["c", "b", "a"], ("c", "b", "a"), [1, 2, 0]),
        (["b", "a", "c"], {"a": "x", "b": "y", "c": "x"}, ("x", "y"), [1, 0, 0]),
        ([1, 0, -1], {0: "no", 1: "yes", -1: None}, ("no", "yes"), [1, 0, None]),
        ([True, False, True], {True: "yes", False: "no"}, ("yes", "no"), [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels(tmp_path, labels, names, classes, meaning, kind):
    table = TextTable("text", "mood", write(tmp_path / f"mine.{kind}", rows(labels=labels)), class_names=names)
    module = loaded({"moods": table})
    assert module.tasks[0].class_names == classes
    found = dict(chain(*(examples(module.split("moods", name)) for name in ("train", "val", "test"))))
    assert found == {f"text {i}": meaning[i % 3] for i in range(60) if meaning[i % 3] is not None}


def test_named_classes_are_matched_by_name(tmp_path):
    features = Features({"text": Value("string"), "mood": ClassLabel(names=["good", "bad"])})
    plain = {"text": [f"text {i}" for i in range(30)], "mood": [i % 2 for i in range(30)]}
    Dataset.from_dict(plain, features=features).to_parquet(tmp_path / "a.parquet")
    table = TextTable("text", "mood", str(tmp_path / "a.parquet"), class_names=["bad", "good"])
    found = examples(loaded({"moods": table}).split("moods", "train"))
    assert all(label == (int(text.split()[1]) + 1) % 2 for text, label in found)


def test_label_space(tmp_path):
    """Tasks of one label space have the same classes; what train lacks is absent."""
    both = {
        "one": TextTable("text", "mood", write(tmp_path / "a.csv", rows(30, labels=["yes", "no"])), label_space="s"),
        "two": TextTable("text", "mood", write(tmp_path / "b.csv", rows(30, labels=["yes", "maybe"])), label_space="s"),
    }
    one, two = loaded(both).tasks
    assert one.class_names == two.class_names == ("maybe", "no", "yes") and one.label_set == two.label_set == "s"
    assert one.absent == ("maybe",) and two.absent == ("no",)
    listed = {"list": ["yes", "no", "maybe"], "map": {"yes": "yes", "maybe": "maybe"}}
    tables = {
        "one": TextTable("text", "mood", both["one"].path, class_names=listed["list"], label_space="s"),
        "two": TextTable("text", "mood", both["two"].path, class_names=listed["map"], label_space="s"),
    }
    module = loaded(tables)
    assert module.tasks[1].class_names == ("yes", "no", "maybe") and module.tasks[1].absent == ("no",)
    assert set(module.split("two", "train").labels.tolist()) == {0, 2}
    tables["two"] = TextTable("text", "mood", both["two"].path, class_names=["maybe", "yes"], label_space="s")
    with pytest.raises(SheetbendError, match="list different class_names"):
        loaded(tables)


def test_groups_stay_together(tmp_path):
    module = loaded({"moods": TextTable("text", "mood", write(tmp_path / "a.csv", rows(80)), group="who")})
    people = [
        {int(text.split()[1]) // 4 for text, _ in examples(module.split("moods", name))}
        for name in ("train", "val", "test")
    ]
    assert sum(map(len, people)) == len(set.union(*people)) == 20
    assert [4 * len(one) for one in people] == [56, 8, 16]
    paths = {"train": write(tmp_path / "b.csv", rows(10)), "test": write(tmp_path / "c.csv", rows(10, start=10))}
    with pytest.raises(SheetbendError, match=r"who 'person 2' is in (train|val) and in test"):
        loaded({"moods": TextTable("text", "mood", splits=paths, group="who")})


def test_repeats_are_left_out_of_a_cut_and_refused_across_files(tmp_path):
    path = write(tmp_path / "a.csv", rows(40) + rows(3))
    module = loaded({"moods": TextTable("text", "mood", path)})
    assert sum(len(module.split("moods", name)) for name in ("train", "val", "test")) == 40
    assert module.caveats == ["moods: 3 of 43 examples repeat the text of another and are left out."]
    splits = {"train": path, "test": write(tmp_path / "b.csv", rows(5))}
    with pytest.raises(SheetbendError, match="splits must not overlap"):
        loaded({"moods": TextTable("text", "mood", splits=splits)})
    module = loaded({"moods": TextTable("text", "mood", splits=splits)}, overlap="report")
    assert any("share" in sentence for sentence in module.caveats)


def test_yaml(tmp_path):
    """The whole of it by configuration."""
    path = write(tmp_path / "a.csv", rows())
    config = tmp_path / "config.yaml"
    config.write_text(
        "data:\n  tables:\n"
        f"    moods:\n      path: {path}\n      text: [text, other]\n      label: mood\n"
        "      class_names:\n        good: fine\n        bad: not fine\n        so so: null\n"
        f"    codes:\n      splits: {{train: {path}}}\n      text: text\n      label: mood\n      metric: matthews\n"
        "  max_length: 16\n"
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TextTableDataModule, "data")
    module = parser.instantiate_classes(parser.parse_args([f"--config={config}"])).data
    assert [task.class_names for task in module.tasks] == [("fine", "not fine"), ("bad", "good", "so so")]
    assert module.tasks[1].metric == "matthews" and module.max_length == 16
    config.write_text(config.read_text().replace("good: fine", "0: fine").replace("bad: not fine", "1: not fine"))
    module = parser.instantiate_classes(parser.parse_args([f"--config={config}"])).data
    assert module.tasks[0].class_names == ("fine", "not fine")


def test_sources(tmp_path):
    path = write(tmp_path / "a.csv", rows())
    module = TextTableDataModule(
        {
            "here": TextTable("text", "mood", path),
            "hub": TextTable("text", "mood", hub="a/b", splits={"train": "train", "test": "dev"}, class_names=MOODS),
        }
    )
    assert {str(place) for place, _ in module.sources("here").values()} == {path}
    assert [split for _, split in module.sources("hub").values()] == ["train", "train", "dev"]
    with pytest.raises(SheetbendError, match="hub data set a/b is not on this machine"):
        module.load("hub")


def test_bad_input(tmp_path):
    path = write(tmp_path / "a.csv", rows())

    def refused(message, **fields):
        with pytest.raises(SheetbendError, match=message) as caught:
            loaded({"moods": TextTable(**({"text": "text", "label": "mood", "path": path} | fields))})
        assert "\n" not in str(caught.value)

    refused(r"a.csv has no column 'txt' \(did you mean 'text'\?\); it has text, other, mood, who", text="txt")
    refused("has no column 'question'", group="question")
    refused("text names 3 columns", text=["text", "other", "who"])
    refused("/nowhere.csv is not there", path="/nowhere.csv")
    refused("are both given", hub="a/b")
    refused("nothing to read", path=None)
    refused("is one file, so splits has no meaning", splits={"train": "train"})
    refused(r"splits is None; say what train is called", path=str(tmp_path))
    refused(r"splits is \{'test': 'a'\}; say what train", path=str(tmp_path), splits={"test": "a"})
    refused("has no files of a split 'b'", path=str(tmp_path), splits={"train": "b"})
    refused("val 0.5 and test 0.5 are shares", val=0.5, test=0.5)
    refused("row 3: label 'so so' is none of the classes good, bad; correct it", class_names=["good", "bad"])
    refused("row 1: label 'good' is none of the classes godo.*did you mean", class_names={"godo": "x", "bad": "y"})
    numbers = write(tmp_path / "numbers.csv", rows(labels=[0, 1, 7]))
    refused("row 3: label '7' is outside .* of the classes no, yes; ", path=numbers, class_names=["no", "yes"])
    refused("label '7' is outside the range", path=numbers, class_names=["no", "yes"], label_space="s")
    one = write(tmp_path / "one.csv", rows(labels=["a"]))
    refused("column 'mood' has 1 label; classes must be 2 or more", path=one)
    empty = rows(6)
    empty[4]["mood"] = ""
    refused("row 5: there is no label", path=write(tmp_path / "empty.csv", empty))
    empty = rows(6)
    empty[1]["text"] = None
    refused("row 2: column 'text' is empty", path=write(tmp_path / "none.jsonl", empty))
    for blank, kind in (("", "csv"), ("  ", "jsonl"), ("", "parquet")):
        empty[1]["text"] = blank
        refused("row 2: column 'text' is empty", path=write(tmp_path / f"blank.{kind}", empty))
    floats = [row | {"mood": [0.0, float("nan"), 1.0][i % 3]} for i, row in enumerate(rows(9))]
    refused("row 2: there is no label", path=write(tmp_path / "nan.parquet", floats))
    refused(r"row 2: label 0.5 is neither a word", path=write(tmp_path / "half.jsonl", rows(9, labels=[0, 0.5, 1])))
    for share in ("val", "test"):
        refused("are shares of train", **{share: float("nan")})
    refused("config and revision are of a hub data set", config="x")
    for names in (["good"], {"good": "x", "bad": None, "so so": "x"}):
        refused("task moods: it has one class, .*; give 2 or more", class_names=names)
    (tmp_path / "head.csv").write_text("text,mood\n")
    (tmp_path / "void.jsonl").write_text("")
    for name in ("head.csv", "void.jsonl"):
        refused(f"file .*{name}: it has no rows", path=str(tmp_path / name))
    for length in (-5, 0, 1):
        with pytest.raises(SheetbendError, match=f"data.max_length is {length}; give a number of at least 2"):
            TextTableDataModule({"moods": TextTable("text", "mood", path)}, max_length=length)
    with pytest.raises(SheetbendError, match=r"data\.tables is empty"):
        TextTableDataModule({})
    refused("none for its (val|test) split", path=write(tmp_path / "few.csv", rows(3)))
    with pytest.raises(SheetbendError, match="unknown task 'mods'"):
        TextTableDataModule({"moods": TextTable("text", "mood", path)}, tasks=["mods"])
    with pytest.raises(SheetbendError, match="overlap is 'ignore'"):
        TextTableDataModule({"moods": TextTable("text", "mood", path)}, overlap="ignore")


def test_only_the_tables_in_use_are_read_and_only_when_needed(tmp_path, monkeypatch):
    read = []

    def reading(source, split):
        read.append(str(source))
        return read_table(source, split)

    monkeypatch.setattr("datamodules.own_data.read_table", reading)
    path = write(tmp_path / "a.csv", rows())
    far = TextTable("text", "mood", hub="a/b", splits={"train": "train", "test": "dev"}, label_space="s")
    tables = {"here": TextTable("text", "mood", path, label_space="s"), "far": far}
    module = TextTableDataModule(tables, tasks=["here"])
    assert module.task_names == ("here",) and not module.missing() and module.sources("here") and read == []
    assert module.tasks[0].class_names == tuple(sorted(MOODS)) and read == [path]
    both = TextTableDataModule(tables)
    assert not both.missing() and len(both.sources("far")) == 3 and read == [path]
    with pytest.raises(SheetbendError, match=r"hub data set a/b is not .*name it: path of task far") as caught:
        both.setup()
    assert "root" not in str(caught.value) and "\n" not in str(caught.value)
