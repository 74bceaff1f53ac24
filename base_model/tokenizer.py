"""A byte-level BPE tokenizer of our own: small enough for a small model, and any word can be written with it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
CONTEXT = 24  # tokens, with the start and end marks
WORDS = Path(__file__).with_name("words.txt")


def train_tokenizer(captions: list[str], vocabulary: int = 2500) -> PreTrainedTokenizerFast:
    """Train the tokenizer on captions and on a list of common words.

    Args:
        captions: Text whose words shall be single tokens.
        vocabulary: Largest number of tokens, the 256 bytes and three marks included.

    Returns:
        A tokenizer that lower-cases and puts the marks around the text. The end mark has id 1: with id 2
        transformers' CLIP falls back to reading the text at the largest id.
    """
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*captions, *WORDS.read_text(encoding="utf-8").split()], trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, core.token_to_id(START)), (END, core.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=END,
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
