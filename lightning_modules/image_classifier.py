"""Vision encoders with LoRA, and frozen class vectors as heads."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from datamodules.images import ImageTransform
from datamodules.label_space import JointLabels, joint_labels
from lightning_modules.base import LoRATasks
from lightning_modules.checks import check_number
from lightning_modules.image_backbones import ImageBackbone, image_backbone
from lightning_modules.lora import without_adapters
from lightning_modules.metrics import Evaluator
from lightning_modules.prototypes import cached_prototypes, joint_prototypes
from lightning_modules.text_heads import cached_class_vectors, class_prompts
from mergers import SheetbendError


class ImageClassifier(LoRATasks):
    """Fine-tune LoRA adapters of a vision encoder: CLIP's (Radford et al., 2021, arXiv 2103.00020) or another.

    The logit of a class is ``logit_scale`` times the cosine of the image feature and the class vector. Class vectors
    are frozen, computed once and cached: of a model with a text tower from the task's prompts; of one without,
    prototypes, the normalised mean of the normalised features that the pretrained encoder gives the class's training
    images.
    Batches hold uint8 images (N, 3, H, W); on the device they are resized where they are not of the model's size,
    scaled and normalised.

    ``backbone`` may be CLIP or any vision encoder of transformers (ViT, DINOv2), or one of open_clip's:
    ``open_clip:ViT-B-32/laion2b_s34b_b79k``, ``open_clip:ViT-B-32/weights.safetensors``; see
    `lightning_modules.open_clip_backbone`. There ``lora.target_modules`` are ``[attn]``.

    Args:
        logit_scale: factor on the cosine (the published CLIP models have learned 100). 10000 gives what the script of
            KnOTS trains with, since its stored class vectors carry a factor of 100 already.
        head: where class vectors come from: ``text``, ``prototypes``, or ``auto``: text where there is a text tower.
        prototype_images: how many training images a class's prototype is made of at most; which, depends on the split
            alone. Absent classes have a vector of zeros. A joint class that tasks share has the mean of their
            prototypes.
        *args: see `LoRATasks`.
        **kwargs: see `LoRATasks`.
    """

    takes = "images"

    def __init__(
        self,
        *args: Any,
        logit_scale: float = 100.0,
        head: Literal["auto", "text", "prototypes"] = "auto",
        prototype_images: int = 100,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_number("logit_scale", logit_scale, above=0)
        check_number("prototype_images", prototype_images, least=1)
        self.logit_scale = logit_scale
        self.head = head
        self.prototype_images = prototype_images

    @cached_property
    def source(self) -> ImageBackbone:
        """The encoder by name; its weights are read by `build`."""
        return image_backbone(self.backbone_name)

    @property
    def image_transform(self) -> ImageTransform:
        """What makes of a picture the square that the encoder takes; known before anything is built."""
        return self.source.transform

    @property
    def base_name(self) -> str:
        """The base model's name as adapters carry it."""
        return self.source.base_name

    def build(
        self, tasks: Sequence[Any], fresh: bool = True, run_folder: str | Path | None = None, data: Any = None
    ) -> None:
        """Build everything for ``tasks``; see `LoRATasks.build`.

        Raises:
            SheetbendError: the class vectors cannot be made from what there is, said before weights are read.
        """
        self._check_head(tasks, data)
        super().build(tasks, fresh, run_folder, data)

    def _check_head(self, tasks: Sequence[Any], data: Any) -> None:
        if self.head == "text" and not self.source.has_text:
            raise SheetbendError(
                f"head is text, but backbone {self.backbone_name!r} has no text tower; give prototypes"
            )
        if self._from_text():
            for task in tasks:
                if not task.templates:
                    raise SheetbendError(
                        f"task {task.name}: its classes have no prompts; give the task templates, such as 'a photo of "
                        "a {}.', or model.init_args.head: prototypes"
                    )
        elif data is None:
            raise SheetbendError(
                "head prototypes: class vectors are made of training images; give build the datamodule, after its setup"
            )

    def _from_text(self) -> bool:
        return self.head == "text" or (self.head == "auto" and self.source.has_text)

    def build_backbone(self) -> nn.Module:
        """Load the encoder, and the mean and deviation that its images need."""
        self.register_buffer("pixel_mean", _per_channel(self.source.mean), persistent=False)
        self.register_buffer("pixel_std", _per_channel(self.source.std), persistent=False)
        return self.source.load(self.backbone_dtype)

    def _checkpoint_activations(self) -> None:
        self.source.checkpoint_activations(self.model.get_base_model())

    def build_heads(self, tasks: Sequence[Any]) -> None:
        """Make the class vectors of each task, and of the joint label spaces."""
        self.joint = joint_spaces(tasks)
        own, joint = self._text_heads(tasks) if self._from_text() else self._prototype_heads(tasks)
        for name, vectors in [
            *((f"head_{n}", v) for n, v in own.items()),
            *((f"{n}_head", v) for n, v in joint.items()),
        ]:
            self.register_buffer(name, vectors.to(self.device), persistent=False)

    def _text_heads(self, tasks: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        key = self.source.content_key()

        def vectors(prompts: list[list[str]]) -> Tensor:
            return cached_class_vectors(prompts, key, self.source.text_encoder)

        prompts = {task.name: class_prompts(task.class_names, task.templates) for task in tasks}
        own = {name: vectors(groups) for name, groups in prompts.items()}
        return own, {space: vectors(joint_prompts(joint, prompts)) for space, joint in self.joint.items()}

    def _prototype_heads(self, tasks: Sequence[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # The dtype is the backbone's, so that a head is the same on every device.
        facts = [self.source.content_key(), str(self.backbone_dtype), self.source.transform.key]
        home, fingerprints, own = self.device, self.data.fingerprints(), {}
        for task in tasks:
            split, print_of_split = self.data.split(task.name, "train"), fingerprints[task.name]["train"]
            own[task.name] = cached_prototypes(
                task, split, print_of_split, self._embed_pretrained, facts, self.prototype_images
            )
        self.to(home)
        return own, {space: joint_prototypes(joint, own) for space, joint in self.joint.items()}

    @torch.no_grad()
    def _embed_pretrained(self, images: Tensor) -> Tensor:
        """Embed ``images`` without adapters, on a GPU if there is one; the trainer has not placed the model yet."""
        if torch.cuda.is_available():
            self.cuda()
        with without_adapters(self.model):
            return self(images.to(self.device))

    def build_evaluator(self, tasks: Sequence[Any]) -> Evaluator:
        """Make each task's metric, and Hits@k over the joint label spaces."""
        return Evaluator(tasks, self.joint)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed uint8 images (N, 3, H, W); return unit vectors, float32 (N, d)."""
        pixels, size = inputs.float() / 255, self.source.transform.size
        if pixels.shape[-2:] != (size, size):
            pixels = interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self.pixel_mean.float()) / self.pixel_std.float()
        dtype = next(self.model.get_base_model().parameters()).dtype
        return normalize(self.source.embed(self.model, pixels.to(dtype)).float(), dim=-1)

    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return ``logit_scale`` times the cosines with the task's class vectors, float32 (N, C)."""
        return self._cosines(features, getattr(self, f"head_{task}"))

    def joint_logits(self, features: Tensor) -> dict[str, Tensor]:
        """Return ``logit_scale`` times the cosines with the class vectors of each joint space, float32 (N, J)."""
        return {space: self._cosines(features, getattr(self, f"{space}_head")) for space in self.joint}

    def _cosines(self, features: Tensor, vectors: Tensor) -> Tensor:
        # bf16 has three digits: cosines would tie, and Hits@k with them.
        with torch.autocast(features.device.type, enabled=False):
            return self.logit_scale * features.float() @ vectors.float().T

    def head_tensors(self, task: str) -> dict[str, Tensor]:
        """Return the task's class vectors, (C, d) float32."""
        return {"class_vectors": getattr(self, f"head_{task}")}


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def joint_spaces(tasks: Sequence[Any]) -> dict[str, JointLabels]:
    """Return the label spaces in which all tasks compete.

    ``joint`` is the published one; ``joint_by_name``, in which equal names are one class, is there if it differs.
    """
    published, by_name = joint_labels(tasks), joint_labels(tasks, by_name=True)
    return {"joint": published} | ({"joint_by_name": by_name} if len(by_name) < len(published) else {})


def joint_prompts(joint: JointLabels, prompts: dict[str, list[list[str]]]) -> list[list[str]]:
    """Return the prompts of each joint class; one that several tasks share has those of all of them."""
    shared: list[list[str]] = [[] for _ in joint.names]
    for name, columns in joint.columns.items():
        for column, group in zip(columns, prompts[name], strict=True):
            shared[column].extend(text for text in group if text not in shared[column])
    return shared
