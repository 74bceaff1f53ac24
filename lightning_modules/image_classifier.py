"""CLIP's vision tower with LoRA, and frozen class vectors as heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from lightning_modules.backbones import content_key, load_pretrained
from lightning_modules.base import LoRATasks
from lightning_modules.joint import joint_labels
from lightning_modules.lora import LoRA
from lightning_modules.metrics import Evaluator
from lightning_modules.text_heads import TextEncoder, cached_class_vectors, class_prompts


class ImageClassifier(LoRATasks):
    """Fine-tune LoRA adapters of CLIP's vision tower (Radford et al., 2021, arXiv 2103.00020).

    The logit of a class is ``logit_scale`` times the cosine of the image feature and the class vector; class vectors
    come from the task's prompts through the frozen text tower, computed once and cached. Batches hold uint8 images
    (N, 3, H, W); on the device they are resized where they are not of the model's size, scaled and normalised.

    Args:
        backbone: folder of a CLIPModel, the name of one that ships with Sheetbend, or a hub id.
        lora: rank, scale, dropout and target layers of the adapters.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's decoupled weight decay of the adapters.
        betas: AdamW's decay rates of the first and the second moment.
        warmup_steps: optimiser steps of one task over which its learning rate rises from zero; a cosine to zero
            over the rest of its steps follows.
        patience: validations in a row without a gain of ``min_delta`` after which a task stops; none: never.
        min_delta: gain in validation accuracy (a fraction) that counts for ``patience``.
        adapters: adapters to start from instead of fresh ones: a folder with one PEFT folder a task in it, or a map
            from task name to PEFT folder. ``validate`` and ``test`` look in the run folder where none is given.
        seed: seeds initial values and dropout, together with the task's name; none takes the one given to
            ``seed_everything``, else 0.
        logit_scale: factor on the cosine (the published CLIP models have learned 100).
    """

    def __init__(
        self,
        backbone: str,
        lora: LoRA = LoRA(),
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        patience: int | None = None,
        min_delta: float = 1e-3,
        adapters: str | dict[str, str] | None = None,
        seed: int | None = None,
        logit_scale: float = 100.0,
    ):
        super().__init__(
            backbone=backbone,
            lora=lora,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            betas=betas,
            warmup_steps=warmup_steps,
            patience=patience,
            min_delta=min_delta,
            adapters=adapters,
            seed=seed,
        )
        self.logit_scale = logit_scale

    def build_backbone(self) -> nn.Module:
        """Load the vision tower and its projection; read the mean, deviation and size that its images need."""
        config = load_pretrained(AutoConfig.from_pretrained, self.backbone_name)
        self._model_key = content_key(self.backbone_name, getattr(config, "_commit_hash", None))
        # Its numbers only: the processor itself works on pictures one by one, on the CPU.
        processor, _ = load_pretrained(BaseImageProcessor.get_image_processor_dict, self.backbone_name)
        self.register_buffer("pixel_mean", _per_channel(processor["image_mean"]), persistent=False)
        self.register_buffer("pixel_std", _per_channel(processor["image_std"]), persistent=False)
        tower = load_pretrained(CLIPVisionModelWithProjection.from_pretrained, self.backbone_name)
        self.image_size = tower.config.image_size
        return tower

    def build_heads(self, tasks: Sequence[Any]) -> None:
        """Make the class vectors of each task, and of the joint label space."""
        prompts = {task.name: class_prompts(task.class_names, task.templates) for task in tasks}
        self.joint = joint_labels(tasks)
        for name, groups in prompts.items():
            self.register_buffer(f"head_{name}", self._class_vectors(groups), persistent=False)
        # A class that several tasks share has the prompts of all of them.
        shared = [[] for _ in self.joint.names]
        for name, columns in self.joint.columns.items():
            for column, group in zip(columns, prompts[name], strict=True):
                shared[column].extend(text for text in group if text not in shared[column])
        self.register_buffer("head_joint", self._class_vectors(shared), persistent=False)

    def build_evaluator(self, tasks: Sequence[Any]) -> Evaluator:
        """Make accuracy per task and Hits@k over the joint label space."""
        counts = {task.name: len(task.class_names) for task in tasks}
        return Evaluator(counts, self.joint.columns, len(self.joint.names))

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed uint8 images (N, 3, H, W); return unit vectors (N, d)."""
        pixels = inputs.to(self.pixel_mean.dtype) / 255
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = interpolate(pixels, (self.image_size, self.image_size), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        return normalize(self.model(pixel_values=pixels).image_embeds, dim=-1)

    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return ``logit_scale`` times the cosines with the task's class vectors, (N, C)."""
        return self.logit_scale * features @ getattr(self, f"head_{task}").to(features.dtype).T

    def joint_logits(self, features: Tensor) -> Tensor:
        """Return ``logit_scale`` times the cosines with the class vectors of all tasks, (N, J)."""
        return self.logit_scale * features @ self.head_joint.to(features.dtype).T

    def head_tensors(self, task: str) -> dict[str, Tensor]:
        """Return the task's class vectors, (C, d) float32."""
        return {"class_vectors": getattr(self, f"head_{task}")}

    def _class_vectors(self, prompts: list[list[str]]) -> Tensor:
        return cached_class_vectors(prompts, self._model_key, self._load_text_encoder).to(self.device)

    def _load_text_encoder(self) -> TextEncoder:
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, self.backbone_name)
        tower = load_pretrained(CLIPTextModelWithProjection.from_pretrained, self.backbone_name).eval()
        length = tower.config.max_position_embeddings

        @torch.no_grad()
        def encode(texts: list[str]) -> Tensor:
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            return tower(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds

        return encode


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
