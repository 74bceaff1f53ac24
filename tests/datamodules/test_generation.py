"""The declared generation tasks, their splits and samples, and their batches."""

import random
from collections import Counter

import pytest
import torch
from datasets import Dataset
from jsonargparse import ArgumentParser

from datamodules.generation import GenerationDataModule, balanced_sample, hold_out, plain_sample
from datamodules.generation_tasks import GenerationTask, families
from lightning_modules import ImageClassifier
from mergers import SheetbendError
from tests.generation_stand_ins import declared_table, prepared, word_tokenizer, write_split

ALL = [(family, name) for family, tasks in families().items() for name in tasks]


def write(root, task, sizes):
    for seed, (split, size) in enumerate(sizes.items()):
        columns, features = declared_table(task, size, seed)
        write_split(root / task.name, split, columns, features)


def declared_sizes(task, train=20, other=8):
    return {source: train if name == "train" else other for name, source in task.splits.items() if source}


def test_all_tasks_of_the_paper_are_declared():
    assert {family: len(tasks) for family, tasks in families().items()} == {
        "flan_t5": 13,
        "llama_instruct": 13,
        "mistral_instruct": 20,
    }
    flan, llama, mistral = families().values()
    assert flan["mnli"].words[2] == ["contradiction", "Contradiction", "contradict", "Contradict"]
    assert (flan["agnews"].hub, flan["agnews"].samples, flan["agnews"].balanced) == ("SetFit/ag_news", 50, True)
    assert (flan["boolq"].answer, flan["boolq"].splits["test"]) == ("answer", "validation")
    assert flan["sst2"].samples is None and llama["stsb"].samples == 200 and llama["stsb"].bounds == (0, 5)
    assert list(mistral["ethos"].labels) == ["0", "1"] and mistral["ethos"].words[0][0] == "not violence"
    assert (mistral["disco"].max_new_tokens, len(mistral["disco"].labels), mistral["disco"].samples) == (12, 13, 80)
    assert mistral["qasc"].metric == "f1" and flan["stsb"].metric == "spearman" and mistral["gap"].metric == "accuracy"
    assert not any(task.chat for task in flan.values()) and all(task.chat for task in mistral.values())
    cases = {family: {task.case for task in tasks.values() if task.labels} for family, tasks in families().items()}
    assert cases["flan_t5"] == {"keep"} and cases["llama_instruct"] == {"lower"}


@pytest.mark.parametrize(("family", "name"), ALL)
def test_every_declared_task_reads_its_data_in_the_layout_of_the_hub(family, name, tmp_path):
    task = families()[family][name]
    write(tmp_path, task, declared_sizes(task))
    data = GenerationDataModule([name], family=family, root=str(tmp_path))
    examples = data.examples(name)
    assert all(examples[split].prompts for split in ("train", "val", "test"))
    assert not set(examples["train"].prompts) & set(examples["val"].prompts)
    for answer, label in zip(examples["test"].answers, examples["test"].labels, strict=True):
        assert not task.labels or any(word in answer for word in task.words[label])
    if task.balanced:
        counts = Counter(examples["test"].labels)
        assert len(set(counts.values())) == 1 and len(counts) == len(task.labels)


def test_prompts_are_the_published_ones(tmp_path):
    hella, piqa = families()["flan_t5"]["hella"], families()["flan_t5"]["piqa"]
    row = {"ctx": ["He ran"], "endings": [["home.", "up."]], "label": ["1"]}
    for split in ("train", "validation"):
        write_split(tmp_path / "hella", split, row)
        write_split(tmp_path / "piqa", split, {"goal": ["G"], "sol1": ["{x}"], "sol2": ["Y"], "label": [1]})
    data = GenerationDataModule(["hella", "piqa"], family="flan_t5", root=str(tmp_path))
    assert data._read(hella, "test", data._table(hella, "test")).prompts == [
        "The following is a context: 'He ran'\nGiven this context, choose the most appropriate ending:\n0: home.\n"
        "1: up.\nPlease return 0, 1, 2, or 3 as the correct answer."
    ]
    read = data._read(piqa, "test", data._table(piqa, "test"))
    assert read.prompts[0].startswith("Question: G\n    Option 1: {x}\n    Option 2: Y\n    Which option")
    assert (read.answers, read.labels) == (["2"], [0])  # class 2 is looked for first


@pytest.mark.parametrize("each", [3, 1000])
def test_balanced_samples_are_those_of_the_published_evaluation(each):
    labels = [random.Random(7).choice("aabbbc") for _ in range(3)] + list("cabbacabbbaac")
    random.seed(42)
    expected = []
    for label in dict.fromkeys(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        expected += random.sample(rows, min(each, min(Counter(labels).values())))
    assert balanced_sample(labels, each) == expected


def test_plain_samples_are_those_of_the_published_evaluation():
    random.seed(42)
    assert plain_sample(50, 20) == random.sample(list(range(50)), 20)
    assert plain_sample(5, None) == plain_sample(5, 9) == [0, 1, 2, 3, 4]


def test_finance_takes_the_published_tenth_of_its_only_split(tmp_path):
    task = families()["flan_t5"]["finance"]
    write(tmp_path, task, {"train": 40})
    columns, _ = declared_table(task, 40, 0)
    published = Dataset.from_dict(columns).train_test_split(test_size=0.1, seed=42)
    found = GenerationDataModule(["finance"], family="flan_t5", root=str(tmp_path)).examples("finance")
    assert [prompt.split("'")[1] for prompt in found["test"].prompts] == published["test"]["sentence"][:]
    assert len(found["train"].prompts) == 32 and len(found["val"].prompts) == 4


def test_held_out_examples_are_seeded_and_share_no_prompt(tmp_path):
    task = families()["flan_t5"]["sst2"]
    columns, features = declared_table(task, 50, 0)
    columns["sentence"][10:20] = columns["sentence"][:10]
    write_split(tmp_path / "sst2", "train", columns, features)
    data = GenerationDataModule(["sst2"], family="flan_t5", root=str(tmp_path))
    examples = data._read(task, "train", data._table(task, "train"))
    train, val = hold_out(examples, 0.1, seed=3)
    assert not set(train.prompts) & set(val.prompts)
    assert len(set(val.prompts)) == 4 and len(train.prompts) + len(val.prompts) == 50
    assert hold_out(examples, 0.1, seed=3)[1] == val != hold_out(examples, 0.1, seed=4)[1]


def test_sample_counts_can_be_given(tmp_path):
    for name in ("sst2", "qqp"):
        write(tmp_path, families()["flan_t5"][name], {"train": 60, "validation": 30})
    options = {"samples": {"qqp": 3}, "val_samples": 2, "train_samples": 11}
    data = GenerationDataModule(["sst2", "qqp"], family="flan_t5", root=str(tmp_path), **options)
    assert [len(data.examples("qqp")[split].labels) for split in ("train", "val", "test")] == [11, 2, 6]
    assert len(data.examples("sst2")["test"].labels) == 30
    assert data.examples("qqp") == data.examples("qqp")


def setup(root, name, family, tokenizer, architecture, max_length=None, **options):
    data = GenerationDataModule([name], family=family, root=str(root), **options)
    data.attach(prepared(tokenizer, architecture, max_length))
    data.setup()
    return data


def rows(tensor, mask):
    return [row[keep.bool()].tolist() for row, keep in zip(tensor, mask, strict=True)]


@pytest.fixture
def rte(tmp_path):
    task = families()["llama_instruct"]["rte"]
    columns, features = declared_table(task, 20, 0)
    columns["sentence1"] = ["word " * (i % 5) + text for i, text in enumerate(columns["sentence1"])]
    for split in ("train", "validation"):
        write_split(tmp_path / "rte", split, columns, features)
    texts = [task.prompt, *columns["sentence1"], *columns["sentence2"], "yes", "no", "user", "assistant", "26 Jul 2024"]
    return tmp_path, texts


def test_causal_training_batches_learn_the_answer_alone(rte):
    root, texts = rte
    tokenizer = word_tokenizer(texts)
    split = setup(root, "rte", "llama_instruct", tokenizer, "causal").split("rte", "train")
    inputs, labels = split.batch([0, 1, 2, 3, 4])
    assert labels is inputs["labels"] or torch.equal(labels, inputs["labels"])
    for row, mask, label, example in zip(inputs["input_ids"], inputs["attention_mask"], labels, range(5), strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()  # padding on the right
        answer = [*tokenizer(split.examples.answers[example], add_special_tokens=False).input_ids, 2]
        assert row[length - len(answer) : length].tolist() == answer
        assert label[label != -100].tolist() == answer and (label[length:] == -100).all()
        start = tokenizer.decode(row[:8])
        assert start.startswith("<s> user 26 Jul 2024 Does the text") and row[length - len(answer) - 1] == (
            tokenizer.convert_tokens_to_ids("assistant")
        )


def test_causal_prompts_are_padded_on_the_left_and_encoders_on_the_right(rte):
    root, texts = rte
    causal = setup(root, "rte", "llama_instruct", word_tokenizer(texts), "causal").split("rte", "test")
    inputs, labels, references = causal.batch([0, 3, 4])
    assert (inputs["attention_mask"][:, -1] == 1).all() and (inputs["attention_mask"] == 0).any()
    assert rows(inputs["input_ids"], inputs["attention_mask"]) == [causal._ids[i] for i in (0, 3, 4)]
    assert labels.tolist() == [causal.labels[i] for i in (0, 3, 4)]
    assert references == [causal.examples.answers[i] for i in (0, 3, 4)]
    lengths = [len(causal._ids[i]) for i in causal.eval_order()]
    assert lengths == sorted(lengths, reverse=True) and sorted(causal.eval_order()) == list(range(len(causal)))
    tokenizer = word_tokenizer(texts, ends=True)
    encoder = setup(root, "rte", "llama_instruct", tokenizer, "seq2seq", chat=False)
    inputs, *_ = encoder.split("rte", "test").batch([0, 3, 4])
    assert (inputs["attention_mask"][:, 0] == 1).all() and (inputs["attention_mask"] == 0).any()
    assert all(row[-1] == 2 for row in rows(inputs["input_ids"], inputs["attention_mask"]))
    inputs, labels = encoder.split("rte", "train").batch([0, 1])
    expected = [tokenizer(text).input_ids for text in encoder.split("rte", "train").examples.answers[:2]]
    assert [label[label != -100].tolist() for label in labels] == expected


def test_long_prompts_are_shortened_and_counted(rte):
    root, texts = rte
    causal = setup(root, "rte", "llama_instruct", word_tokenizer(texts), "causal", max_length=20)
    split = causal.split("rte", "test")
    whole = causal._tokens["rte"].prompts(split.examples.prompts)
    assert all(len(ids) == 20 for ids in split._ids)
    assert split._ids[3] == whole[3][:10] + whole[3][-10:]
    assert "rte: 16 of 16 test prompts are longer than 20 tokens and shortened." in causal.caveats
    encoder = setup(root, "rte", "llama_instruct", word_tokenizer(texts, ends=True), "seq2seq", 20, chat=False)
    assert all(len(ids) == 20 and ids[-1] == 2 for ids in encoder.split("rte", "test")._ids)
    assert encoder.split("rte", "train").batch([0])[0]["input_ids"].shape == (1, 20)


def test_a_prompt_in_two_splits_is_reported_for_published_data(rte):
    root, texts = rte
    data = setup(root, "rte", "llama_instruct", word_tokenizer(texts), "causal")
    assert any("train and test splits share" in caveat for caveat in data.caveats)


def test_sources_name_the_hub_or_the_local_copy(tmp_path):
    data = GenerationDataModule(["mnli", "finance"], family="flan_t5")
    source, split = data.sources("mnli")["test"]
    assert (source.name, source.config, split) == ("nyu-mll/glue", "mnli", "validation_matched")
    assert data.sources("finance")["test"][1] == "train"
    (tmp_path / "mnli").mkdir()
    local = GenerationDataModule(["mnli"], family="flan_t5", root=str(tmp_path))
    assert local.sources("mnli")["val"] == (tmp_path / "mnli", "train")
    (tmp_path / "mnli" / "mnli").mkdir()
    assert local.sources("mnli")["val"] == (tmp_path / "mnli" / "mnli", "train")


OWN = """
tasks: [capitals]
own_tasks:
  - name: capitals
    path: {path}
    prompt: "What is the capital of {{country}}?"
    answer: city
    scoring: contains
    splits: {{train: train, val: null, test: null}}
    test_fraction: 0.25
"""


def test_own_tasks_are_declared_in_yaml(tmp_path):
    lines = [f"land{i},town{i}" for i in range(20)]
    (tmp_path / "capitals.csv").write_text("\n".join(["country,city", *lines]) + "\n")
    parser = ArgumentParser()
    parser.add_class_arguments(GenerationDataModule, "data")
    parser.add_argument("--config", action="config")
    (tmp_path / "data.yaml").write_text(f"data:{OWN.format(path=tmp_path / 'capitals.csv')}".replace("\n", "\n  "))
    data = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "data.yaml")])).data
    found = data.examples("capitals")
    assert [len(found[split].prompts) for split in ("train", "val", "test")] == [13, 2, 5]
    assert found["test"].prompts[0].startswith("What is the capital of land")
    assert data.overlap == "refuse"


def own(folder, rows, **fields):
    """An own task whose file holds ``rows`` of (question, answer)."""
    table = {"q": [question for question, _ in rows], "o": [answer for _, answer in rows]}
    Dataset.from_dict(table).to_parquet(folder / "ask.parquet")
    fields = {
        "labels": {"bad": ["bad"], "good": ["good"]},
        "test_fraction": 0.25,
        "splits": {"train": "train"},
    } | fields
    task = GenerationTask("ask", "{q}", "o", path=str(folder / "ask.parquet"), **fields)
    return GenerationDataModule(["ask"], own_tasks=[task])


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([("a", "good")], {}, "task ask: of 1 different examples, test_fraction 0.25 leaves train or test none"),
        ([("a", "good")] * 9, {}, "task ask: of 1 different examples"),
        ([("a", "good"), (" ", "bad")], {}, "q of row 2 of its train split is empty; fill it in"),
        ([("a", "good"), ("", "bad")], {}, "q of row 2 of its train split is empty"),
        ([("a", "good"), ("b", "  ")], {}, "o of row 2 of its train split is empty"),
        ([("a", 1.5), ("b", float("nan"))], {"labels": {}, "scoring": "contains"}, "o of row 2 of its .* is empty"),
        ([(1.5, "good"), (float("nan"), "bad")], {}, "q of row 2 of its train split is empty"),
    ],
)
def test_own_rows_that_cannot_be_used_are_one_line(tmp_path, rows, fields, message):
    with pytest.raises(SheetbendError, match=message) as error:
        own(tmp_path, rows, **fields).examples("ask")
    assert "\n" not in str(error.value)


def test_repeats_of_own_prompts_are_left_out_of_the_cut(tmp_path):
    rows = [(f"question {i}", "good" if i % 2 else "bad") for i in range(20)]
    data = own(tmp_path, rows + rows[:7])
    found = data.examples("ask")
    assert sorted(prompt for split in found.values() for prompt in split.prompts) == sorted(q for q, _ in rows)
    assert data._notes["ask"] == ["ask: 7 of 27 examples repeat the prompt of another and are left out."]


@pytest.mark.parametrize("keys", [("False", "True"), ("false", "true"), ("0", "1"), (False, True)])
def test_classes_of_booleans(tmp_path, keys):
    labels = dict(zip(keys, (["bad"], ["good"]), strict=True))
    found = own(tmp_path, [(f"question {i}", bool(i % 2)) for i in range(20)], labels=labels).examples("ask")["train"]
    assert found.answers == [["bad", "good"][int(prompt.split()[1]) % 2] for prompt in found.prompts]


OPEN = {"prompt": "{text}", "hub": "org/name"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{text"}, "write {{ and }}"),
        ({"prompt": "{text.format}"}, "is no column's name"),
        ({}, "needs labels of at least two classes; it has 0"),
        ({"labels": {"0": ["no"], "1": []}}, "label '1' has no word"),
        ({"scoring": "bleu"}, "scoring 'bleu' is none of label_words"),
        ({"scoring": "contains", "hub": None}, "give hub or path"),
        ({"scoring": "contains", "splits": {"train": "train"}}, "give test_fraction"),
        ({"scoring": "contains", "test_fraction": 0.1}, "and not both"),
        ({"scoring": "contains", "balanced": True}, "balanced needs labels"),
        ({"scoring": "contains", "max_new_tokens": 0}, "must be at least 1"),
        ({"labels": None}, "labels is None; give a map"),
        ({"scoring": "contains", "splits": None}, "splits is None; give a map"),
        ({"scoring": "number", "bounds": (5, 0)}, "bounds are [5, 0]; give the lower one first"),
        ({"scoring": "number", "bounds": (0, float("nan"))}, "bounds are [0, nan]"),
    ],
)
def test_a_wrong_declaration_is_refused(fields, message):
    with pytest.raises(SheetbendError) as error:
        GenerationTask("ask", **{**OPEN, **fields})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["sst2"]}, "data.family is not given; choose one (flan_t5"),
        ({"tasks": ["sst2"], "family": "flan"}, "none of flan_t5, llama_instruct, mistral_instruct (did you mean"),
        ({"tasks": ["ethos"], "family": "flan_t5"}, "unknown task 'ethos'"),
        ({"tasks": ["sst2"], "family": "flan_t5", "root": "/nowhere"}, "/nowhere/sst2 is not there"),
        ({"tasks": ["sst2"], "family": "flan_t5", "samples": {"qqp": 3}}, "data.samples names 'qqp'"),
        ({"tasks": ["sst2"], "family": "flan_t5", "val_samples": 0}, "data.val_samples is 0"),
    ],
)
def test_wrong_settings_are_one_line(options, message):
    with pytest.raises(SheetbendError) as error:
        GenerationDataModule(**options).check_all()
    assert message in str(error.value) and "\n" not in str(error.value)


def broken(columns):
    def build(folder):
        for split in ("train", "validation"):
            write_split(folder / "sst2", split, columns)

    return build


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "label": [0]}, "has no column 'sentence'; it has text, label"),
        (
            {"sentence": ["a", "b"], "label": [0, -1]},
            "label of row 2 of its train split is '-1', none of its labels 1 (pos",
        ),
        ({"sentence": ["a", "b"], "label": ["1", ""]}, "label of row 2 of its train split is empty"),
        ({"sentence": ["a", None], "label": [0, 1]}, "sentence of row 2 of its train split is empty; fill it in"),
        ({"sentence": ["a"], "label": [0]}, "its val split is empty"),
    ],
)
def test_wrong_data_is_one_line(tmp_path, columns, message):
    broken(columns)(tmp_path)
    with pytest.raises(SheetbendError) as error:
        GenerationDataModule(["sst2"], family="flan_t5", root=str(tmp_path)).examples("sst2")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_line():
    with pytest.raises(SheetbendError, match=r"hub data set SetFit/ag_news .*data.init_args.root") as error:
        GenerationDataModule(["agnews"], family="flan_t5").examples("agnews")
    assert "\n" not in str(error.value)


def test_models_and_tokenizers_that_cannot_answer_are_refused():
    data = GenerationDataModule(["rte"], family="llama_instruct")
    with pytest.raises(
        SheetbendError, match=r"gives questions, and ImageClassifier takes images; .* such as TextGenerator"
    ):
        data.attach(ImageClassifier("nowhere"))
    with pytest.raises(SheetbendError, match=r"call attach\(model\) before setup"):
        data.setup()
    with pytest.raises(SheetbendError, match=r"task rte: tokenizer .*: it has no chat template"):
        data.attach(prepared(word_tokenizer(["a"], chat=False), "causal"))
    endless = word_tokenizer(["a"])
    endless.eos_token = None
    with pytest.raises(SheetbendError, match="no token for the end of an answer"):
        data.attach(prepared(endless, "causal"))


def test_another_model_gets_its_own_tokens(tmp_path):
    write(tmp_path, families()["flan_t5"]["sst2"], {"train": 60, "validation": 30})
    data = GenerationDataModule(["sst2"], family="flan_t5", root=str(tmp_path))
    tokens = []
    for limit in (None, 3, 3):
        model = prepared(word_tokenizer(["a"]), "seq2seq", limit)
        for _ in range(2):  # the same model changes nothing
            data.attach(model)
            data.setup()
            tokens.append(data.split("sst2", "test").batch([0])[0]["input_ids"].shape[1])
        assert len(data.caveats) == len(set(data.caveats))
    assert tokens[0] == tokens[1] > 3 and tokens[2:] == [3] * 4
