"""Tokenised splits, against the tokenizer itself."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import processors

from datamodules.tasks import fingerprint
from datamodules.text import Texts, TextSplit, encode_labels, label_words, plain, read_texts
from mergers import SheetbendError
from tests.text_stand_ins import WORDS, word_tokenizer


def random_texts(count, pairs=True, seed=0, longest=12):
    generator = np.random.default_rng(seed)
    columns = [
        pa.chunked_array([[" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(count)]])
        for _ in range(1 + pairs)
    ]
    return Texts(tuple(columns), generator.integers(0, 3, count))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("pairs", "types"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("max_length", [None, 9])
def test_batches_are_what_the_tokenizer_pads(side, pairs, types, max_length, monkeypatch):
    monkeypatch.setattr("datamodules.text.BLOCK", 7)
    texts = random_texts(40, pairs)
    tokenizer = word_tokenizer(padding_side=side, types=types)
    split = TextSplit(texts, tokenizer, max_length)
    for rows in ([3], [5, 0, 39, 5], list(range(40))):
        inputs, labels = split.batch(rows)
        words = [[one[row].as_py() for row in rows] for one in texts.columns]
        cut = {"truncation": True, "max_length": max_length} if max_length else {}
        expected = tokenizer(*words, padding=True, return_tensors="pt", **cut)
        assert set(inputs) == set(expected)
        for name, value in inputs.items():
            assert value.dtype == torch.int64 and torch.equal(value, expected[name]), name
        assert labels.dtype == torch.int64 and labels.tolist() == texts.labels[rows].tolist()


def test_truncation_is_the_smaller_limit():
    texts = random_texts(20, longest=30)
    lengths = TextSplit(texts, word_tokenizer()).lengths()
    assert lengths.max() > 20
    for given, tokenizers, expected in ((None, 16, 16), (12, 16, 12), (20, 16, 16)):
        cut = TextSplit(texts, word_tokenizer(limit=tokenizers), given).lengths()
        assert cut.tolist() == np.minimum(lengths, expected).tolist()


def test_evaluation_goes_from_long_to_short():
    split = TextSplit(random_texts(50), word_tokenizer())
    order = split.eval_order()
    assert sorted(order) == list(range(50))
    assert order == sorted(range(50), key=lambda row: (-split.lengths()[row], row))


def test_keys_are_of_texts_not_of_tokens():
    """Two unknown words are two examples; one pair is not the same as its texts joined or swapped."""
    one = Texts(
        (pa.chunked_array([["zebra", "x y", "x", "y"]]), pa.chunked_array([["a", "z", "y z", "x z"]])), np.arange(4)
    )
    split = TextSplit(one, word_tokenizer())
    assert len(set(split.example_keys())) == 4
    other = TextSplit(Texts(one.columns, one.labels), word_tokenizer(padding_side="left"), 4)
    assert fingerprint(other) == fingerprint(split)
    assert fingerprint(TextSplit(one.take(np.array([1, 0, 2, 3])), word_tokenizer())) != fingerprint(split)


def test_nothing_is_tokenised_before_it_is_needed(monkeypatch):
    split = TextSplit(random_texts(5), word_tokenizer())
    monkeypatch.setattr("datamodules.text.tokenize", lambda *_: pytest.fail("tokenised"))
    assert len(split) == 5 and len(split.example_keys()) == 5 and split.labels.shape == (5,)


def test_an_example_of_no_tokens_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    texts = read_texts(Dataset.from_dict({"text": ["dog", "cat", " "]}), ["text"], np.array([0, -1, 1]), "x", True)
    split = TextSplit(texts, tokenizer, name="task m, its test split")
    with pytest.raises(SheetbendError, match="task m, its test split, row 3: the tokenizer makes no tokens of ' '"):
        split.eval_order()


def test_pad_token_is_needed():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(SheetbendError, match="has no pad token"):
        TextSplit(random_texts(2), tokenizer)


def test_label_words():
    features = Features({"label": ClassLabel(names=["Not_Entailment", "entailment"])})
    assert label_words(Dataset.from_dict({"label": [1, 0, -1]}, features=features), "label") == [
        "entailment",
        "not entailment",
        "-1",
    ]
    beside = Dataset.from_dict({"label": [1, 0], "label_text": ["not entailment", "entailment"]})
    assert label_words(beside, "label") == ["not entailment", "entailment"]
    assert label_words(Dataset.from_dict({"label": [2, 0]}), "label") == ["2", "0"]
    assert label_words(Dataset.from_dict({"label": ["NEUTRAL", None]}), "label") == ["neutral", ""]
    assert plain(" A-b_c ") == "a b c"


def test_encode_labels():
    assert encode_labels(["b", "a", "-1"], {"a": 0, "b": 2, "-1": -1}, "x").tolist() == [2, 0, -1]
    with pytest.raises(SheetbendError, match=r"x, row 2: unknown label 'neutrl' \(did you mean 'neutral'\?\); known"):
        encode_labels(["neutral", "neutrl"], {"neutral": 0, "entailment": 1}, "x")


def test_read_texts():
    rows = {"text": ["a", None, "c"], "number": [1, 2, 3]}
    table = Dataset.from_dict(rows, features=Features({"text": Value("string"), "number": Value("int64")}))
    kept = read_texts(table, ["text"], np.array([1, -1, 0]), "file x")
    assert kept.columns[0].to_pylist() == ["a", "c"] and kept.labels.tolist() == [1, 0]
    with pytest.raises(SheetbendError, match="file x, row 2: column 'text' is empty"):
        read_texts(table, ["text"], np.array([1, 1, 0]), "file x")
    spaces = Dataset.from_dict({"text": ["a", " \t\u00a0", ""], "more": ["", "b", " "]})
    with pytest.raises(SheetbendError, match="file x, row 2: column 'text' is empty"):
        read_texts(spaces, ["text"], np.array([1, 1, 0]), "file x")
    with pytest.raises(SheetbendError, match="file x, row 3: column 'more' is empty"):
        read_texts(spaces, ["more"], np.array([-1, 1, 0]), "file x")
    pairs = read_texts(spaces, ["text", "more"], np.array([1, 1, 0]), "file x", allow_blank=True)
    assert pairs.blank().tolist() == [False, False, True] and pairs.rows.tolist() == [1, 2, 3]
    with pytest.raises(SheetbendError, match="column 'number' holds int64, not text"):
        read_texts(table, ["number"], np.array([1, 1, 0]), "file x")
