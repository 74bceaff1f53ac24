"""Language models with LoRA that answer in words."""

import inspect
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from datamodules.base import place
from datamodules.prompts import IGNORED
from lightning_modules.answers import AnswerEvaluator
from lightning_modules.backbones import load_pretrained, load_tokenizer
from lightning_modules.base import LoRATasks
from lightning_modules.checks import check_number
from lightning_modules.processes import in_all_processes
from lightning_modules.variants import Variant, finetuned
from mergers import SheetbendError
from mergers.files import atomic_write

ANSWERS_FILE = "answers.jsonl"
PROMPT_TAIL = 300  # characters of a prompt that stand beside its answer


class TextGenerator(LoRATasks):
    """Fine-tune LoRA adapters of a seq2seq or causal language model, and test what it answers.

    What is learned is the cross entropy of the answer's tokens. Tested is the answer of greedy decoding, scored as each
    task says; of the model's generation settings only its special tokens are used. ``lora.target_modules`` must name
    layers of the model: ``q`` and ``v`` in T5, ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` in Llama and Mistral.

    Args:
        max_length: tokens of a prompt at most; none: what the tokenizer says that the model takes.
        saved_answers: examples of each task whose answers, by every variant, a test writes to ``answers.jsonl`` in the
            run folder; the longest prompts come first.
        *args: see `LoRATasks`.
        **kwargs: see `LoRATasks`.
    """

    takes = "questions"

    def __init__(self, *args: Any, max_length: int | None = None, saved_answers: int = 20, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_number("max_length", 2 if max_length is None else max_length, least=2)
        check_number("saved_answers", saved_answers, least=0)
        self.max_length = max_length
        self.saved_answers = saved_answers
        self._answers: list[dict[str, Any]] = []

    # What the data are prepared with.

    @cached_property
    def architecture(self) -> str:
        """``seq2seq`` for a model with an encoder, else ``causal``."""
        config = load_pretrained(AutoConfig.from_pretrained, self.backbone_name)
        return "seq2seq" if config.is_encoder_decoder else "causal"

    @cached_property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer; one without a pad token pads with its end-of-sequence token."""
        return load_tokenizer(self.backbone_name)

    # The model.

    def build_backbone(self) -> nn.Module:
        """Load the language model, set to greedy decoding."""
        kind = AutoModelForSeq2SeqLM if self.architecture == "seq2seq" else AutoModelForCausalLM
        try:
            model = load_pretrained(kind.from_pretrained, self.backbone_name, dtype=self.backbone_dtype)
        except ValueError as error:
            if isinstance(error, SheetbendError) or "Unrecognized configuration" not in str(error):
                raise
            raise SheetbendError(
                f"backbone {self.backbone_name!r}: transformers has no {self.architecture} language model of its "
                "kind; give one that generates text"
            ) from None
        model.generation_config = greedy(model.generation_config, self.tokenizer)
        return model

    def build_heads(self, tasks: Sequence[Any]) -> None:
        """Make nothing: all tasks share the language model's head."""

    def build_evaluator(self, tasks: Sequence[Any]) -> AnswerEvaluator:
        """Make the metrics of answers."""
        return AnswerEvaluator(tasks)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the model as it stands on prompts and their answers.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` (B, L), and ``labels`` (B, M), -100 where nothing is to be
                learned; M = L for a causal model.

        Returns:
            The logits of the tokens to be learned, (number of such labels, vocabulary), row by row.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        base = self.model.get_base_model()
        if self.architecture == "seq2seq":
            before = base.prepare_decoder_input_ids_from_labels(labels)
            return self.model(**inputs, decoder_input_ids=before, use_cache=False).logits[labels != IGNORED]
        # A token's logits stand one place before it. Prompts are most of a row and a vocabulary is wide, so logits are
        # made only where some row has an answer.
        labels = labels[:, 1:]
        places = (labels != IGNORED).any(0).nonzero().flatten()
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            logits = self.model(**inputs, logits_to_keep=places, use_cache=False).logits
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, places]
        return logits[labels[:, places] != IGNORED]

    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return ``features``: what `forward` gives are logits."""
        return features

    def loss(self, features: Tensor, labels: Tensor, task: str) -> Tensor:
        """Return the mean cross entropy of the answers' tokens, a scalar."""
        known = labels[labels != IGNORED]
        return nn.functional.cross_entropy(features.float(), known, label_smoothing=self.label_smoothing)

    def loss_terms(self, labels: Tensor) -> int:
        """Return the number of the answers' tokens."""
        return int((labels != IGNORED).sum())

    # Answers.

    @torch.no_grad()
    def generate(self, inputs: dict[str, Tensor], max_new_tokens: int) -> list[str]:
        """Return the model's answers to prompts, by greedy decoding of the model as it stands.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` (B, L), padded on the left for a causal model.
            max_new_tokens: tokens of an answer at most.
        """
        tokens = self.model.get_base_model().generate(**inputs, max_new_tokens=max_new_tokens)
        start = inputs["input_ids"].shape[1] if self.architecture == "causal" else 0
        return self.tokenizer.batch_decode(tokens[:, start:], skip_special_tokens=True)

    @torch.no_grad()
    def rehearse(self, batch: Any) -> None:
        """Do what testing one batch in one variant does, and count nothing."""
        with self.using(finetuned(), batch.task):
            self.generate(batch.inputs, self.evaluator.tasks[batch.task].max_new_tokens)

    @torch.no_grad()
    def evaluate(self, name: str, variant: Variant, batch: Any) -> None:
        """Let ``variant`` answer one batch, and count what its answers are worth under ``name``."""
        own = self.evaluator.tasks[batch.task]
        with self.using(variant, batch.task):
            answers = self.generate(batch.inputs, own.max_new_tokens)
        before = self.evaluator.seen(name, batch.task)
        worth = self.evaluator.update(name, batch.task, answers, batch.labels, batch.references)
        if self.trainer.state.fn == "test" and before < self.saved_answers:
            self._note_answers(name, batch, answers, worth, before)

    def _note_answers(self, variant: str, batch: Any, answers: list[str], worth: list[float], before: int) -> None:
        rank, world = place(self.trainer)
        prompts = self.tokenizer.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)
        for row, prompt in enumerate(prompts):
            example = (before + row) * world + rank  # batches are dealt out to processes example by example
            if example < self.saved_answers:
                entry = {"task": batch.task, "example": example, "variant": variant, "prompt": prompt[-PROMPT_TAIL:]}
                self._answers.append(
                    {**entry, "answer": answers[row], "reference": batch.references[row], "score": worth[row]}
                )

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        super().on_test_epoch_start()
        self._answers = []

    def on_test_epoch_end(self) -> None:
        """Note what was measured, and write the first answers to the run folder."""
        super().on_test_epoch_end()
        self._answers = in_all_processes(self._answers)
        if not self._answers or not self.trainer.is_global_zero or self.trainer.fast_dev_run:
            return
        tasks, variants = self.task_names, list(self.variants)
        # The answers of all variants to one prompt stand together.
        self._answers.sort(key=lambda a: (tasks.index(a["task"]), a["example"], variants.index(a["variant"])))
        with atomic_write(Path(self.trainer.default_root_dir) / ANSWERS_FILE) as temporary:
            lines = (json.dumps(answer, ensure_ascii=False) for answer in self._answers)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def greedy(settings: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Return greedy decoding with the special tokens of ``settings``, and nothing else of it."""
    ends = settings.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=settings.bos_token_id,
        decoder_start_token_id=settings.decoder_start_token_id,
        eos_token_id=list(dict.fromkeys([*ends, tokenizer.eos_token_id])),
        pad_token_id=tokenizer.pad_token_id,
    )
