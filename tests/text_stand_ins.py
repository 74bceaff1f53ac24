"""A word-level tokenizer and a model that has nothing but it, for tests of texts."""

from types import SimpleNamespace

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (*"abcdefgh", "man", "woman", "dog", "cat", "runs", "sleeps", "sits", "eats", "outside", "good", "bad", "not")


def word_tokenizer(padding_side="right", types=True, limit=None):
    """A tokenizer that writes ``<s> a </s> b </s>``, with token types 0 and 1."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate((*specials, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_input_names=names,
        **({} if limit is None else {"model_max_length": limit}),
    )


def text_model(max_length=None, **options):
    """What a datamodule of texts takes from a model."""
    return SimpleNamespace(tokenizer=word_tokenizer(**options), max_length=max_length)
