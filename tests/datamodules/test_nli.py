"""The six tasks in every format in which they come, against the published way to read and split them."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from datamodules.nli import CLASSES, NLI_TASKS, NLIDataModule
from datamodules.sources.tables import Hub
from lightning_modules import TextGenerator
from mergers import SheetbendError
from tests.text_stand_ins import WORDS, text_model

THREE = list(CLASSES)
TWO = ["entailment", "not_entailment"]


def pairs(count, seed, labels):
    """Distinct pairs of sentences, and label numbers."""
    generator = np.random.default_rng(seed)
    first = [" ".join(generator.choice(WORDS, generator.integers(2, 9))) + f" {seed} {i}" for i in range(count)]
    second = [" ".join(generator.choice(WORDS, generator.integers(2, 6))) for _ in range(count)]
    return first, second, generator.choice(labels, count).tolist()


def as_parquet(path, columns, count, seed, names, labels):
    """A split as the hub keeps it, with named classes."""
    first, second, numbers = pairs(count, seed, labels)
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=names)})
    rows = dict(zip((*columns, "label"), (first, second, numbers), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(path)


def as_setfit(path, count, seed, names, labels):
    """A split as SetFit keeps it: jsonl with the label's number and its words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = dict(enumerate(name.replace("_", " ") for name in names)) | {-1: "unlabeled"}
    with path.open("w") as file:
        for i, (one, two, number) in enumerate(zip(*pairs(count, seed, labels), strict=True)):
            row = {"text1": one, "text2": two, "label": number, "idx": i, "label_text": words[number]}
            file.write(json.dumps(row) + "\n")


def loaded(task, root, **options):
    module = NLIDataModule([task], root=str(root), **options)
    module.attach(text_model())
    module.setup()
    return module


def sentences(split):
    return list(zip(*(one.to_pylist() for one in split.texts.columns), split.labels.tolist(), strict=True))


def expected(seed, count, labels, meaning):
    """What a task must make of a generated split, in its order: unlabelled pairs dropped, labels renumbered."""
    first, second, numbers = pairs(count, seed, labels)
    return [(a, b, meaning[n]) for a, b, n in zip(first, second, numbers, strict=True) if n >= 0]


@pytest.mark.parametrize("layout", ["plain_text/{}-00000-of-00001.parquet", "data/{}-00000-of-00001.parquet"])
def test_snli_drops_what_has_no_label(tmp_path, layout):
    for seed, split in enumerate(("train", "validation", "test")):
        path = tmp_path / "snli" / layout.format(split)
        as_parquet(path, ("premise", "hypothesis"), 30, seed, THREE, [-1, 0, 1, 2])
    module = loaded("snli", tmp_path)
    for seed, name in enumerate(("train", "val", "test")):
        assert sentences(module.split("snli", name)) == expected(seed, 30, [-1, 0, 1, 2], [0, 1, 2])
    assert any("30 examples in train; 550152 are published" in sentence for sentence in module.caveats)
    assert module.tasks[0].absent == () and module.tasks[0].label_set == "nli"


@pytest.mark.parametrize("source", ["setfit", "glue"])
@pytest.mark.parametrize(("task", "share", "shuffle"), [("mnli", 0.2, False), ("qnli", 0.2, True), ("rte", 0.5, True)])
def test_validation_is_cut_as_published(tmp_path, source, task, share, shuffle):
    """Both copies of the hub give the very pairs of the published loader: filter, renumber, train_test_split."""
    names = THREE if task == "mnli" else TWO
    meaning = [0, 1, 2] if task == "mnli" else [0, 2]
    numbers = list(range(len(names)))
    columns = NLI_TASKS[task].sources[1].columns
    validation = "validation_matched" if task == "mnli" else "validation"
    for seed, split in enumerate(("train", validation)):
        if source == "setfit":
            as_setfit(tmp_path / task / f"{split}.jsonl", 41, seed, names, numbers)
        else:
            as_parquet(tmp_path / task / f"{split}-00000-of-00001.parquet", columns, 41, seed, names, numbers)
    module = loaded(task, tmp_path)
    rows = expected(1, 41, numbers, meaning)
    cut = Dataset.from_list([{"a": a, "b": b, "label": label} for a, b, label in rows]).train_test_split(
        test_size=share, shuffle=shuffle, seed=42
    )
    for ours, theirs in (("val", "test"), ("test", "train")):
        assert sentences(module.split(task, ours)) == [(row["a"], row["b"], row["label"]) for row in cut[theirs]]
    assert len(module.split(task, "val")) == -(-41 * share // 1)
    if not shuffle:
        assert sentences(module.split(task, "test")) == rows[:32]
    assert sentences(module.split(task, "train")) == expected(0, 41, numbers, meaning)
    present = set(np.concatenate([module.split(task, name).labels for name in ("train", "val", "test")]).tolist())
    assert not present & {CLASSES.index(name) for name in NLI_TASKS[task].task.absent}


def test_labels_are_matched_by_name(tmp_path):
    """A copy that numbers its classes in another order means the same."""
    for seed, split in enumerate(("train", "validation")):
        path = tmp_path / "rte" / f"{split}.parquet"
        as_parquet(path, ("sentence1", "sentence2"), 20, seed, ["not_entailment", "entailment"], [0, 1])
    assert sentences(loaded("rte", tmp_path).split("rte", "train")) == expected(0, 20, [0, 1], [2, 0])


def test_numbers_alone_are_read_by_their_published_codes(tmp_path):
    for seed, split in enumerate(("train", "validation")):
        first, second, numbers = pairs(12, seed, [0, 1])
        (tmp_path / "qnli").mkdir(exist_ok=True)
        rows = Dataset.from_dict({"question": first, "sentence": second, "label": numbers})
        rows.to_csv(tmp_path / "qnli" / f"{split}.csv", index=False)
    assert sentences(loaded("qnli", tmp_path).split("qnli", "train")) == expected(0, 12, [0, 1], [0, 2])


def sick_file(path):
    """SICK.txt with its own columns; the parts are mixed."""
    header = ["pair_ID", "sentence_A", "sentence_B", "entailment_label", "relatedness_score"]
    header += ["entailment_AB", "entailment_BA", "sentence_A_original", "sentence_B_original"]
    header += ["sentence_A_dataset", "sentence_B_dataset", "SemEval_set"]
    lines, parts = ["\t".join(header)], {"TRAIN": [], "TRIAL": [], "TEST": []}
    for i in range(24):
        part, label = list(parts)[i % 3], i % 5 % 3
        a, b = f'a man is "outside" {i}', f"the dog runs {i}"
        row = [str(i), a, b, THREE[label].upper(), "4.5", "A_x_B", "B_x_A", a, b, "FLICKR", "FLICKR", part]
        lines.append("\t".join(row))
        parts[part].append((a, b, label))
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return parts


def test_sick_in_its_own_file(tmp_path):
    parts = sick_file(tmp_path / "sick" / "SICK" / "SICK.txt")
    module = loaded("sick", tmp_path)
    for ours, theirs in (("train", "TRAIN"), ("val", "TRIAL"), ("test", "TEST")):
        assert sentences(module.split("sick", ours)) == parts[theirs]


def test_sick_from_the_parquet_copy(tmp_path):
    for seed, split in enumerate(("train", "validation", "test")):
        path = tmp_path / "sick" / "default" / split / "0000.parquet"
        as_parquet(path, ("sentence_A", "sentence_B"), 15, seed, THREE, [0, 1, 2])
    assert sentences(loaded("sick", tmp_path).split("sick", "val")) == expected(1, 15, [0, 1, 2], [0, 1, 2])


def test_snli_in_its_own_files(tmp_path):
    folder = tmp_path / "snli" / "snli_1.0"
    folder.mkdir(parents=True)
    for seed, split in enumerate(("train", "dev", "test")):
        with (folder / f"snli_1.0_{split}.jsonl").open("w") as file:
            for i, (one, two, number) in enumerate(zip(*pairs(20, seed, [-1, 0, 1, 2]), strict=True)):
                gold = "-" if number < 0 else THREE[number]
                row = {"annotator_labels": [gold], "captionID": f"{i}.jpg#0", "gold_label": gold, "pairID": f"{i}n"}
                file.write(json.dumps(row | {"sentence1": one, "sentence2": two}) + "\n")
    module = loaded("snli", tmp_path)
    for seed, name in enumerate(("train", "val", "test")):
        assert sentences(module.split("snli", name)) == expected(seed, 20, [-1, 0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("own", [True, False])
def test_scitail(tmp_path, own):
    """Its words: entails and neutral; in its own files, that have no header, and as the hub has it."""
    words = ["entails", "neutral"]
    for seed, (split, short) in enumerate((("train", "train"), ("validation", "dev"), ("test", "test"))):
        first, second, numbers = pairs(14, seed, [0, 1])
        labels = [words[number] for number in numbers]
        if own:
            path = tmp_path / "scitail" / "SciTailV1.1" / "tsv_format" / f"scitail_1.0_{short}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{a}\t{b}\t{c}\n" for a, b, c in zip(first, second, labels, strict=True)))
        else:
            path = tmp_path / "scitail" / "tsv_format" / split / "0000.parquet"
            path.parent.mkdir(parents=True)
            Dataset.from_dict({"premise": first, "hypothesis": second, "label": labels}).to_parquet(path)
    module = loaded("scitail", tmp_path)
    for seed, name in enumerate(("train", "val", "test")):
        assert sentences(module.split("scitail", name)) == expected(seed, 14, [0, 1], [0, 1])
    assert module.tasks[0].absent == ("contradiction",)


def test_lengths(tmp_path):
    sick_file(tmp_path / "sick" / "SICK.txt")
    assert loaded("sick", tmp_path).split("sick", "val").max_length == 2000
    assert loaded("sick", tmp_path, max_length=7).split("sick", "val").lengths().max() == 7
    module = NLIDataModule(["sick"], root=str(tmp_path))
    module.attach(text_model(max_length=5))
    module.setup()
    assert module.split("sick", "val").lengths().max() == 5


def test_loaders(tmp_path):
    """Evaluation visits each pair once, long ones first; training batches are padded by themselves."""
    sick_file(tmp_path / "sick" / "SICK.txt")
    module = loaded("sick", tmp_path, batch_size=3, eval_batch_size=3)
    batches = list(module.test_dataloader()[0])
    assert [len(batch.labels) for batch in batches] == [3, 3, 2] and batches[0].task == "sick"
    widths = [batch.inputs["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert sum(len(batch.labels) for batch in module.train_dataloader()) == 8


def test_workers_give_the_same_batches(tmp_path, capfd):
    sick_file(tmp_path / "sick" / "SICK.txt")
    alone, helped = (list(loaded("sick", tmp_path, num_workers=n, batch_size=3).train_dataloader()) for n in (0, 1))
    for one, two in zip(alone, helped, strict=True):
        assert one.inputs["input_ids"].tolist() == two.inputs["input_ids"].tolist()
    assert "forked" not in capfd.readouterr().err


def test_published_overlap_is_reported(tmp_path):
    """Pairs that a data set itself has in two splits are counted, and do not stop the work."""
    parts = sick_file(tmp_path / "sick" / "SICK.txt")
    path = tmp_path / "sick" / "SICK.txt"
    a, b, _ = parts["TRAIN"][0]
    row = ["99", a, b, "NEUTRAL", "1", "x", "x", a, b, "FLICKR", "FLICKR", "TEST"]
    path.write_text(path.read_text() + "\t".join(row) + "\n")
    assert any("its train and test splits share 1 example" in sentence for sentence in loaded("sick", tmp_path).caveats)


def test_sources():
    module = NLIDataModule(["mnli", "sick"])
    assert module.sources("mnli")["val"] == (NLI_TASKS["mnli"].sources[0].hub, "validation")
    assert str(module.sources("sick")["train"][0]) == "hub data set RobZamp/sick"
    glue = NLIDataModule(["mnli"], from_glue=True)
    assert glue.sources("mnli")["test"] == (Hub("nyu-mll/glue", "mnli"), "validation_matched")
    assert all(set(task.counts) == set(task.sources[0].splits.values()) for task in NLI_TASKS.values())


def test_bad_input(tmp_path):
    with pytest.raises(SheetbendError, match=r"data.root .* has no folder rte; put a copy of hub data set SetFit/rte"):
        NLIDataModule(["rte"], root=str(tmp_path)).setup()
    with pytest.raises(SheetbendError, match="max_length is 0"):
        NLIDataModule(["rte"], max_length=0)
    (tmp_path / "rte").mkdir()
    with pytest.raises(SheetbendError, match="no files of a split 'train'"):
        loaded("rte", tmp_path)
    Dataset.from_dict({"question": ["a"], "label": [0]}).to_csv(tmp_path / "rte" / "train.csv", index=False)
    with pytest.raises(SheetbendError, match=r"task rte, split train has no column 'text1'.*it has question, label"):
        loaded("rte", tmp_path)
    rows = {"text1": ["a", "b"], "text2": ["c", "d"], "label": ["entailment", "maybe"]}
    Dataset.from_dict(rows).to_csv(tmp_path / "rte" / "train.csv", index=False)
    with pytest.raises(SheetbendError, match="task rte, split train, row 2: unknown label 'maybe'; known labels"):
        loaded("rte", tmp_path)
    rows["label"] = [0, 7]
    Dataset.from_dict(rows).to_csv(tmp_path / "rte" / "train.csv", index=False)
    with pytest.raises(SheetbendError, match="row 2: unknown label '7'"):
        loaded("rte", tmp_path)
    rows["label"] = [-1, -1]
    for split in ("train", "validation"):
        Dataset.from_dict(rows).to_csv(tmp_path / "rte" / f"{split}.csv", index=False)
    with pytest.raises(SheetbendError, match=r"validation split has 0 labelled examples"):
        loaded("rte", tmp_path)
    module = NLIDataModule(["rte"])
    with pytest.raises(SheetbendError, match="hub data set SetFit/rte is not on this machine"):
        module.load("rte")
    with pytest.raises(SheetbendError, match=r"gives texts, and TextGenerator takes questions; .*Sequence"):
        module.attach(TextGenerator("nowhere"))


def test_another_model_gets_its_own_tokens(tmp_path):
    sick_file(tmp_path / "sick" / "SICK.txt")
    module = loaded("sick", tmp_path)
    first, prints = module.split("sick", "val"), module.fingerprints()
    module.setup()
    assert module.split("sick", "val") is first
    module.attach(text_model(max_length=5))
    module.setup()
    assert module.split("sick", "val").lengths().max() == 5 < first.lengths().max()
    assert module.fingerprints() == prints and len(module.caveats) == len(set(module.caveats))
