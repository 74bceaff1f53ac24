"""CLIP's vision tower with LoRA, and frozen class vectors as heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from transformers import (
    AutoTokenizer,
    BaseImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from lightning_modules.backbones import content_key, load_pretrained
from lightning_modules.base import LoRATasks
from lightning_modules.checks import check_number
from lightning_modules.joint import joint_labels
from lightning_modules.metrics import Evaluator
from lightning_modules.text_heads import TextEncoder, cached_class_vectors, class_prompts


class ImageClassifier(LoRATasks):
    """Fine-tune LoRA adapters of CLIP's vision tower (Radford et al., 2021, arXiv 2103.00020).

    The logit of a class is ``logit_scale`` times the cosine of the image feature and the class vector; class vectors
    come from the task's prompts through the frozen text tower, computed once and cached. Batches hold uint8 images
    (N, 3, H, W); on the device they are resized where they are not of the model's size, scaled and normalised.

    Args:
        logit_scale: factor on the cosine (the published CLIP models have learned 100).
        *args: see `LoRATasks`.
        **kwargs: see `LoRATasks`.
    """

    def __init__(self, *args: Any, logit_scale: float = 100.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check_number("logit_scale", logit_scale, above=0)
        self.logit_scale = logit_scale

    def build_backbone(self) -> nn.Module:
        """Load the vision tower and its projection; read the mean, deviation and size that its images need."""
        # Its numbers only: the processor itself works on pictures one by one, on the CPU.
        processor, _ = load_pretrained(BaseImageProcessor.get_image_processor_dict, self.backbone_name)
        self.register_buffer("pixel_mean", _per_channel(processor["image_mean"]), persistent=False)
        self.register_buffer("pixel_std", _per_channel(processor["image_std"]), persistent=False)
        tower = load_pretrained(CLIPVisionModelWithProjection.from_pretrained, self.backbone_name)
        self.image_size = tower.config.image_size
        self._model_key = content_key(self.backbone_name)
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
        self.register_buffer("joint_head", self._class_vectors(shared), persistent=False)

    def build_evaluator(self, tasks: Sequence[Any]) -> Evaluator:
        """Make accuracy per task and Hits@k over the joint label space."""
        counts = {task.name: len(task.class_names) for task in tasks}
        return Evaluator(counts, self.joint.columns, len(self.joint.names))

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed uint8 images (N, 3, H, W); return unit vectors, float32 (N, d)."""
        pixels = inputs.float() / 255
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            pixels = interpolate(pixels, (self.image_size, self.image_size), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self.pixel_mean.float()) / self.pixel_std.float()
        embeds = self.model(pixel_values=pixels.to(self.pixel_mean.dtype)).image_embeds
        return normalize(embeds.float(), dim=-1)

    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return ``logit_scale`` times the cosines with the task's class vectors, float32 (N, C)."""
        return self._cosines(features, getattr(self, f"head_{task}"))

    def joint_logits(self, features: Tensor) -> Tensor:
        """Return ``logit_scale`` times the cosines with the class vectors of all tasks, float32 (N, J)."""
        return self._cosines(features, self.joint_head)

    def _cosines(self, features: Tensor, vectors: Tensor) -> Tensor:
        # bf16 has three digits: cosines would tie, and Hits@k with them.
        with torch.autocast(features.device.type, enabled=False):
            return self.logit_scale * features.float() @ vectors.float().T

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
