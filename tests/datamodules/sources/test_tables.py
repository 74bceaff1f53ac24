"""Tables in every layout in which they come, each made tiny."""

import gzip
import io
import json
import shutil

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from datamodules.sources.tables import Hub, class_names, column, read_table, require_columns
from mergers import SheetbendError

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
ROWS = {"text": ["NA", 'a "quoted" word', "null, and more"], "label": [1, 0, 1]}


def table(rows=ROWS, features=FEATURES):
    return Dataset.from_dict(rows, features=features)


def parquet(path, rows=ROWS, features=FEATURES):
    path.parent.mkdir(parents=True, exist_ok=True)
    table(rows, features).to_parquet(path)


@pytest.mark.parametrize(
    "name",
    [
        "data/validation-00000-of-00001.parquet",
        "validation.parquet",
        "validation/0000.parquet",
        "plain_text/validation-00000-of-00001.parquet",
        "default/validation/0000.parquet",
    ],
)
def test_hub_layouts(tmp_path, name):
    parquet(tmp_path / name)
    parquet(tmp_path / name.replace("validation", "validation_matched"), {"text": ["other"], "label": [0]})
    read = read_table(tmp_path, "validation")
    assert column(read, "text") == ROWS["text"] and column(read, "label") == [1, 0, 1]
    assert class_names(read, "label") == ["no", "yes"] and class_names(read, "text") is None
    assert column(read_table(str(tmp_path), "validation_matched"), "text") == ["other"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "csv.gz", "jsonl.gz"])
def test_files(tmp_path, kind):
    """A file is a split; text that looks like a missing value stays text."""
    path, data = tmp_path / f"pairs.{kind}", table()
    if kind == "parquet":
        data.to_parquet(path)
    elif kind.startswith("json"):
        text = "".join(json.dumps(row) + "\n" for row in data)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    elif kind == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in data))
    else:
        text = data.to_pandas().to_csv(index=False)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    read = read_table(path, "anything")
    assert column(read, "text") == ROWS["text"] and column(read, "label") == [1, 0, 1]


def test_saved_folders(tmp_path):
    table().save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=table()).save_to_disk(str(tmp_path / "dict"))
    assert column(read_table(tmp_path / "one", "train"), "text") == ROWS["text"]
    assert class_names(read_table(tmp_path / "dict", "train"), "label") == ["no", "yes"]
    with pytest.raises(SheetbendError, match=r"no split 'test'; it has train$"):
        read_table(tmp_path / "dict", "test")


CARD = """---
dataset_info:
- config_name: words
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': 'no'
          '1': 'yes'
configs:
- config_name: words
  data_files:
  - split: train
    path: words/part-*
- config_name: other
  default: true
  data_files:
  - split: train
    path: [other/a.jsonl, other/b.jsonl]
---
# A data set
"""


def test_card_says_which_files(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    plain = Features({"text": Value("string"), "label": Value("int64")})
    parquet(tmp_path / "words" / "part-1.parquet", features=plain)
    for name in "ab":
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert column(read_table(tmp_path, "train"), "text") == ["a", "b"]
    with pytest.raises(SheetbendError, match="no split 'dev'; it has train"):
        read_table(tmp_path, "dev")
    (tmp_path / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(SheetbendError, match="several configurations: words, other"):
        read_table(tmp_path, "train")


def in_hub_cache(folder, repository, files, monkeypatch, revision="main"):
    """What a download of ``files`` leaves in the hub's cache."""
    import huggingface_hub

    base = folder / f"datasets--{repository.replace('/', '--')}"
    (base / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (base / "refs" / revision).write_text("c0ffee")
    shutil.copytree(files, base / "snapshots" / "c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(folder))


def test_hub_from_its_cache(tmp_path, monkeypatch):
    """What was downloaded is read offline, with its configuration, its revision and the card's class names."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "README.md").write_text(CARD)
    plain = Features({"text": Value("string"), "label": Value("int64")})
    parquet(files / "words" / "part-1.parquet", features=plain)
    in_hub_cache(tmp_path / "hub", "someone/words", files, monkeypatch)
    read = read_table(Hub("someone/words", "words"), "train")
    assert column(read, "text") == ROWS["text"] and class_names(read, "label") == ["no", "yes"]
    with pytest.raises(SheetbendError, match=r"hub data set someone/words \(third\) has no configuration 'third'"):
        read_table(Hub("someone/words", "third"), "train")


def test_hub_parquet_copy(tmp_path, monkeypatch):
    """Data sets that are scripts are read from the hub's own parquet copy, by their files."""
    parquet(tmp_path / "files" / "default" / "validation" / "0000.parquet")
    in_hub_cache(tmp_path / "hub", "someone/script", tmp_path / "files", monkeypatch, "refs/convert/parquet")
    hub = Hub("someone/script", None, "refs/convert/parquet", {"validation": "*/validation/*.parquet"})
    assert class_names(read_table(hub, "validation"), "label") == ["no", "yes"]
    with pytest.raises(SheetbendError, match="no split 'test'; it has validation"):
        read_table(hub, "test")
    by_name = Hub("someone/script", "default", "refs/convert/parquet")
    assert column(read_table(by_name, "validation"), "label") == [1, 0, 1]


def test_hub_switched_off():
    with pytest.raises(SheetbendError) as caught:
        read_table(Hub("stanfordnlp/nothing-here"), "train")
    message = str(caught.value)
    assert message.startswith("hub data set stanfordnlp/nothing-here is not on this machine")
    assert "HF_HUB_OFFLINE" in message and "sheetbend prepare" in message and "data.init_args.root" in message


def test_pictures_stay_encoded(tmp_path):
    buffer = io.BytesIO()
    Picture.new("RGB", (2, 2)).save(buffer, "PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [0]}
    parquet(tmp_path / "train.parquet", rows, Features({"image": Image(), "label": FEATURES["label"]}))
    assert column(read_table(tmp_path, "train"), "image")[0]["bytes"] == buffer.getvalue()


def test_bad_input(tmp_path):
    with pytest.raises(SheetbendError, match="there is no such file or folder"):
        read_table(tmp_path / "absent", "train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SheetbendError, match=r"no files of a split 'train'.*it holds notes.txt"):
        read_table(tmp_path, "train")
    with pytest.raises(SheetbendError, match=r"\.txt cannot be read as one table"):
        read_table(tmp_path / "notes.txt", "train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SheetbendError, match=r"split train: cannot be read as parquet \("):
        read_table(tmp_path, "train")
    for name in ("a", "b"):
        parquet(tmp_path / "two" / name / "train.parquet")
    with pytest.raises(SheetbendError, match="in several of its folders: a, b"):
        read_table(tmp_path / "two", "train")
    for number in (0, 2):
        parquet(tmp_path / "cut" / f"train-0000{number}-of-00003.parquet")
    with pytest.raises(SheetbendError, match=r"of 3 files train-\*-of-00003.parquet, number 00001 is missing"):
        read_table(tmp_path / "cut", "train")
    with pytest.raises(SheetbendError, match=r"x has no column 'txt' \(did you mean 'text'\?\); it has text, label"):
        require_columns(table(), ["label", "txt"], "x")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ("../secret.csv", "outside of it"),
        ("{folder}/../secret.csv", "outside of it"),
        ("https://example.org/x.csv", "no file in it"),
        ("zip://x.csv::mine.zip", "no file in it"),
        ([3], "no file in it|nothing sensible"),
        ([[]], "nothing sensible|no file in it"),
    ],
)
def test_a_card_names_files_of_its_own_folder_alone(tmp_path, files, words):
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("text\nsecret\n")
    files = files.replace("{folder}", str(folder)) if isinstance(files, str) else files
    config = {"config_name": "default", "data_files": [{"split": "train", "path": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': [config]})}\n---\n")
    with pytest.raises(SheetbendError, match=words):
        read_table(folder, "train")


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["3", "{}", '{"splits": ["../x"]}', "[", "null"])
def test_a_damaged_saved_data_set_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(SheetbendError, match=r"cannot be read as a saved data set|has no split"):
        read_table(tmp_path, "train")


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.tsv"])
def test_a_line_of_nothing_but_separators_is_no_table(tmp_path, name):
    content = (b"\t" if ".tsv" in name else b",") * 100_000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(SheetbendError, match="more than 4,096 columns"):
        read_table(tmp_path, "train")
