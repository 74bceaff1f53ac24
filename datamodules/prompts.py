"""Prompts and answers as tokens: for models that read a prompt first, and for those that go on with it."""

from collections.abc import Sequence
from string import Formatter
from typing import Any

import torch
from torch import Tensor

from mergers.errors import SheetbendError

ARCHITECTURES = ("seq2seq", "causal")
IGNORED = -100  # the label that cross entropy passes over
# Some chat templates write the day into the prompt; with a fixed one a test gives the same result on every day. It is
# the day that Llama 3.2's own template falls back on.
TEMPLATE_DAY = "26 Jul 2024"


def prompt_fields(prompt: str) -> list[str]:
    """Return the columns that a prompt names in braces, each once.

    Raises:
        SheetbendError: a brace is left open, or holds more than a column's name.

    >>> prompt_fields("Does ‘{premise}’ entail ‘{hypothesis}’?")
    ['premise', 'hypothesis']
    """
    try:
        parts = [part for part in Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        raise SheetbendError(f"prompt {prompt!r}: {error}; write {{{{ and }}}} for braces of the text itself") from None
    for _, name, form, conversion in parts:
        if not name.isidentifier() or form or conversion:
            raise SheetbendError(f"prompt {prompt!r}: {{{name}}} is no column's name; write {{{{ and }}}} for braces")
    return list(dict.fromkeys(name for _, name, _, _ in parts))


def render(prompt: str, columns: dict[str, Sequence[Any]], rows: int) -> list[str]:
    r"""Return ``prompt`` filled in for each of ``rows`` rows.

    A list, such as the endings to choose from, is written one item a line, each after its index.

    >>> render("{ctx}:\n{endings}\nWhich?", {"ctx": ["He ran"], "endings": [["home.", "up."]]}, 1)
    ['He ran:\n0: home.\n1: up.\nWhich?']
    """
    texts = {name: [_text(value) for value in values] for name, values in columns.items()}
    return [prompt.format(**{name: values[row] for name, values in texts.items()}) for row in range(rows)]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(f"{index}: {item}" for index, item in enumerate(value))
    return str(value)


class PromptTokens:
    """Tokens of one task's prompts and answers.

    Args:
        tokenizer: a transformers tokenizer with a pad token.
        architecture: ``seq2seq`` (an encoder reads the prompt) or ``causal`` (the answer goes on with it).
        max_length: tokens of a prompt at most; none: what the tokenizer says its model takes. An encoder's prompt loses
            its end, as with the tokenizer's own truncation; a causal one its middle, since its last tokens say that
            an answer comes next.
        chat: write each prompt as a user's turn in the tokenizer's chat template.
        room: tokens that an answer takes of what the tokenizer says, where prompt and answer are one text.

    Raises:
        SheetbendError: the tokenizer has no token for the end of an answer, or no chat template.
    """

    def __init__(
        self, tokenizer: Any, architecture: str, max_length: int | None = None, chat: bool = False, room: int = 0
    ):
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {architecture!r} is none of {', '.join(ARCHITECTURES)}")
        if tokenizer.eos_token_id is None:
            raise SheetbendError(
                f"tokenizer {tokenizer.name_or_path}: it has no token for the end of an answer; give a backbone whose "
                "tokenizer has an eos_token"
            )
        if chat and not tokenizer.chat_template:
            raise SheetbendError(
                f"tokenizer {tokenizer.name_or_path}: it has no chat template, and the prompts are turns of a chat; "
                "give an instruction-tuned backbone, or data.init_args.chat: false for bare prompts"
            )
        self.tokenizer = tokenizer
        self.causal = architecture == "causal"
        self.chat = chat
        # A tokenizer that knows no limit says 10^30.
        limit = tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else None
        self.max_length = max_length or (max(2, limit - room) if limit and self.causal else limit)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each prompt, whole."""
        if self.chat:
            turns = [[{"role": "user", "content": text}] for text in texts]
            texts = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, date_string=TEMPLATE_DAY
            )
        # A template writes the special tokens itself: a second first token would not be what the model was tuned on.
        ids = self._ids(texts, special=not self.chat)
        if self.causal and not self.chat:  # some tokenizers end every text, and an answer would begin after the end
            ids = [row[:-1] if row[-1:] == [self.tokenizer.eos_token_id] else row for row in ids]
        return ids

    def cut(self, ids: list[int]) -> list[int]:
        """Return the ids of a prompt, shortened to ``max_length``."""
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        if self.causal:
            tail = self.max_length // 2
            return ids[: self.max_length - tail] + ids[len(ids) - tail :]
        end = ids[-1:] if ids[-1] == self.tokenizer.eos_token_id else []
        return ids[: self.max_length - len(end)] + end

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each answer, ended by the end-of-sequence token."""
        # After a bare prompt an answer is the next word; a chat template ends where an answer begins.
        separated = [f" {text}" if self.causal and not self.chat else text for text in texts]
        end = self.tokenizer.eos_token_id
        rows = self._ids(separated, special=not self.causal)
        return [row if row[-1:] == [end] else [*row, end] for row in rows]

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        # The verbose warning speaks of lengths that `cut` takes care of.
        return self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def training(self, prompts: Sequence[str], answers: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a training batch.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 (B, L), and labels int64 (B, M) with -100 where nothing is to be
            learned. seq2seq: the prompts and the answers, M their length. causal: prompt and answer in one row, M = L,
            and only the answer is to be learned. Padding is on the right.
        """
        rows, targets = [self.cut(ids) for ids in self.prompts(prompts)], self.answers(answers)
        if not self.causal:
            return self._padded(rows), pad(targets, IGNORED)
        labels = pad([[IGNORED] * len(row) + target for row, target in zip(rows, targets, strict=True)], IGNORED)
        return self._padded([row + target for row, target in zip(rows, targets, strict=True)]), labels

    def evaluation(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Return prompts (token ids, already cut) to generate from.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 (B, L). A causal model goes on where a row ends, so that its
            padding is on the left; an encoder's is on the right.
        """
        return self._padded(rows, left=self.causal)

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> dict[str, Tensor]:
        return {
            "input_ids": pad(rows, self.tokenizer.pad_token_id, left),
            "attention_mask": pad([[1] * len(row) for row in rows], 0, left),
        }


def pad(rows: Sequence[list[int]], value: int, left: bool = False) -> Tensor:
    """Return ``rows`` as one int64 tensor (B, length of the longest), filled with ``value``.

    >>> pad([[1, 2], [3]], 0, left=True).tolist()
    [[1, 2], [0, 3]]
    """
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([space + row if left else row + space for row, space in zip(rows, fill, strict=True)])
