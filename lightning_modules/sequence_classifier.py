"""Transformers' models for sequence classification with LoRA, and a head of its own for each task."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_modules.backbones import load_pretrained, load_tokenizer
from lightning_modules.base import LoRATasks
from lightning_modules.checks import check_number
from lightning_modules.heads import fill_head, find_heads, new_head, take_head
from lightning_modules.metrics import Evaluator
from mergers import SheetbendError

# These number positions from the pad token's on, so that their longest text is shorter than their table.
_OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


class SequenceClassifier(LoRATasks):
    """Fine-tune LoRA adapters of a text model, each with a classification head.

    The backbone is what ``AutoModelForSequenceClassification`` loads: Llama, GPT-2, BERT, RoBERTa and their like.
    Shared and frozen is all up to the model's own pooling: the last token that is no padding of a decoder, BERT's
    pooled or RoBERTa's first token. The head (``score`` or ``classifier``, RoBERTa's with its dense layer) belongs to
    its task, is trained with the task's adapter in float32, and is saved in its PEFT folder under ``modules_to_save``,
    as PEFT does for ``SEQ_CLS``. Merged models use each task's own head on the merged backbone.

    Batches hold ``input_ids`` and ``attention_mask`` (N, L), and ``token_type_ids`` where the tokenizer gives them.

    Args:
        max_length: tokens of a text, or of both texts of a pair, at most; none: what tokenizer and model take.
        heads: heads to use instead of fresh ones or those in ``adapters``: a file like KnOTS's ``heads.pt``, a PEFT
            folder or a full checkpoint with a head, with ``{task}`` in the path where each task has its own; or a map
            from task name to such a path.
        train_heads: whether heads are trained; if not they stay as they were given or drawn.
        *args: see `LoRATasks`.
        **kwargs: see `LoRATasks`.
    """

    takes = "texts"

    def __init__(
        self,
        *args: Any,
        max_length: int | None = None,
        heads: str | dict[str, str] | None = None,
        train_heads: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_number("max_length", 2 if max_length is None else max_length, least=2)
        self._given_max_length = max_length
        self.head_source = heads
        self.train_heads = train_heads

    # What the data are prepared with.

    @cached_property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer, padding on the right; one without a pad token pads with its end of sequence."""
        tokenizer = load_tokenizer(self.backbone_name)
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def max_length(self) -> int:
        """The tokens that an example has at most: the smallest of what was asked for and what the model takes."""
        config = load_pretrained(AutoConfig.from_pretrained, self.backbone_name)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and config.model_type in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        limits = (self._given_max_length, self.tokenizer.model_max_length, positions)
        return min(limit for limit in limits if limit is not None)

    # The model.

    def build_backbone(self) -> nn.Module:
        """Load the model and take its head off.

        Raises:
            SheetbendError: it is no model for sequence classification, or lacks layers that its head needs.
        """
        try:
            model, report = load_pretrained(
                AutoModelForSequenceClassification.from_pretrained,
                self.backbone_name,
                dtype=self.backbone_dtype,
                output_loading_info=True,
            )
        except ValueError as error:
            if isinstance(error, SheetbendError) or "Unrecognized configuration" not in str(error):
                raise
            raise SheetbendError(
                f"backbone {self.backbone_name!r}: transformers has no sequence classifier of its kind; give a model "
                "of texts, such as Llama, GPT-2, BERT or RoBERTa"
            ) from None
        self.head_name, self._head_like = take_head(model, self.backbone_name)
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(f"{self.head_name}."))
        if missing:
            raise SheetbendError(
                f"backbone {self.backbone_name!r} holds no {missing[0]}, which its classifier needs below the head and "
                "which would be random; save AutoModelForSequenceClassification.from_pretrained(...) in a folder once, "
                "and give that folder"
            )
        model.config.pad_token_id = self.tokenizer.pad_token_id
        model.config.use_cache = False
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._initializer_range = getattr(model.config, "initializer_range", 0.02)
        return model

    def build_heads(self, tasks: Sequence[Any]) -> None:
        """Make the head of each task: the one it was given, or a fresh one."""
        names = [task.name for task in tasks]
        given = {name: heads for name, heads in self.given_heads.items() if heads}
        if self.head_source is not None:
            given |= find_heads(self.head_source, names, self.head_name)
        for task in tasks:
            classes = len(task.class_names)
            head = new_head(self._head_like, classes, self._initializer_range, self.seed, task.name)
            if task.name in given:
                fill_head(head, given[task.name], self.head_name, task.name, classes)
            elif self.given_heads:
                raise SheetbendError(
                    f"the adapter of {task.name} comes without a head; give it in model.init_args.heads"
                )
            self.add_module(f"head_{task.name}", head.to(self.device).requires_grad_(self.train_heads))
        parts = self._head_like.named_modules()
        layers = [f"{self.head_name}.{name}" for name, part in parts if name and isinstance(part, nn.Linear)]
        for config in getattr(self.model, "peft_config", {}).values():
            # So that PEFT finds the head in what is saved, and puts no LoRA into it.
            config.task_type, config.modules_to_save = "SEQ_CLS", [self.head_name]
            if not isinstance(config.exclude_modules, str):
                config.exclude_modules = sorted({*layers, *(config.exclude_modules or ())}) or None

    def build_evaluator(self, tasks: Sequence[Any]) -> Evaluator:
        """Make each task's metric; text tasks have no joint label space."""
        return Evaluator(tasks)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the head sees of tokenised texts.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, int64 (N, L); a decoder's may be
                padded on either side, an encoder's on the right.

        Returns:
            (N, d), in the dtype of the backbone.
        """
        inputs = {name: value for name, value in inputs.items() if name in self._takes}
        if self.head_name == "score" and {"attention_mask", "position_ids"} <= inputs.keys() | self._takes:
            # A decoder counts from its first column, which on the left may be padding.
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return self.model(**inputs).logits

    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return the logits of the task's head, float32 (N, C)."""
        head = getattr(self, f"head_{task}")
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return head(features if isinstance(head, nn.Linear) else features[:, None])

    def task_parameters(self, task: str) -> dict[str, nn.Parameter]:
        """Return the adapter of ``task`` and, if it is trained, its head, by their names in this module."""
        parameters = super().task_parameters(task)
        if self.train_heads:
            head = getattr(self, f"head_{task}")
            parameters |= {f"head_{task}.{name}": parameter for name, parameter in head.named_parameters()}
        return parameters

    def head_tensors(self, task: str) -> dict[str, Tensor]:
        """Return the head of ``task``, float32, by the names that its tensors have in the model."""
        state = getattr(self, f"head_{task}").state_dict()
        return {f"{self.head_name}.{name}": tensor for name, tensor in state.items()}
