"""Vision encoders by name: transformers' CLIP, any other vision model of transformers, and open_clip's."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from datamodules.images import ImageTransform
from lightning_modules.backbones import (
    HubFiles,
    base_name,
    checkpoint_activations,
    content_key,
    load_pretrained,
    locate,
    source,
)
from lightning_modules.text_heads import TextEncoder
from mergers import SheetbendError

OPEN_CLIP = "open_clip:"


class ImageBackbone(ABC):
    """A vision encoder by name. To make one reads its configuration alone; weights are read by `load`.

    Attributes:
        name: as the user gave it.
        base_name: the name that adapters carry; never a path of this machine.
        transform: makes of a picture the square that the encoder takes.
        mean: what is subtracted from each channel, of pixels in [0, 1].
        std: what each channel is divided by.
        has_text: whether there is a text tower in the same space.
    """

    name: str
    base_name: str
    transform: ImageTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_text: bool

    @classmethod
    def source(cls, name: str) -> HubFiles | Path:
        """Return what a run reads of the encoder ``name``, for `sheetbend prepare`; reads nothing itself.

        By default the folder, or the files on the hub, of a model of transformers.
        """
        return source(name)

    @abstractmethod
    def load(self, dtype: torch.dtype) -> nn.Module:
        """Return the vision encoder in eval mode; adapters are named after its modules."""

    @abstractmethod
    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Run what `load` returned, with or without PEFT around it, on normalised pixels (N, 3, S, S).

        Returns:
            Features (N, d), not normalised.
        """

    @abstractmethod
    def content_key(self) -> str:
        """Return a short hash that changes when the weights or the tokenizer do."""

    def text_encoder(self) -> TextEncoder:
        """Load the text tower; return what maps n texts to embeddings (n, d)."""
        raise NotImplementedError(f"{self.name} has no text tower")

    def checkpoint_activations(self, module: nn.Module) -> None:
        """Let ``module``, of `load`, compute its activations again in the backward pass."""
        checkpoint_activations(module)


def backbone_source(name: str) -> HubFiles | Path:
    """Return what a run reads of the encoder or language model ``name``; reads nothing itself.

    Raises:
        SheetbendError: ``name`` can be no model.
    """
    return (_open_clip_backbone() if name.startswith(OPEN_CLIP) else _TransformersBackbone).source(name)


def image_backbone(name: str) -> ImageBackbone:
    """Return the vision encoder ``name``.

    Args:
        name: a folder of a transformers model, the name of one that ships with Sheetbend, or a hub id; or open_clip's,
            see `lightning_modules.open_clip_backbone`.

    Raises:
        SheetbendError: there is no such model, or it takes no images; one line.
    """
    if name.startswith(OPEN_CLIP):
        return _open_clip_backbone()(name)
    config = load_pretrained(AutoConfig.from_pretrained, name)
    if config.model_type == "clip":
        return ClipBackbone(name)
    if hasattr(config, "vision_config") or hasattr(config, "text_config"):
        raise SheetbendError(
            f"backbone {name!r} is a {config.model_type} of several towers; give a CLIP, a vision encoder such as ViT, "
            f"or one of open_clip's (SigLIP too), such as {OPEN_CLIP}ViT-B-16-SigLIP/webli"
        )
    return VisionBackbone(name)


def _open_clip_backbone() -> type[ImageBackbone]:
    from lightning_modules.open_clip_backbone import OpenClipBackbone  # its import takes seconds

    return OpenClipBackbone


class _TransformersBackbone(ImageBackbone):
    def __init__(self, name: str):
        self.name = name
        self.base_name = base_name(name)
        processor = _image_processor(name)
        self.transform = ImageTransform.from_processor(processor)
        scaled = processor.get("do_normalize", True)
        self.mean = tuple(processor["image_mean"]) if scaled else (0.0,) * 3
        self.std = tuple(processor["image_std"]) if scaled else (1.0,) * 3

    def content_key(self) -> str:
        return content_key(self.name)


class ClipBackbone(_TransformersBackbone):
    """transformers' CLIP: the vision tower with its projection, and the text tower (Radford et al., 2021)."""

    has_text = True

    def load(self, dtype: torch.dtype) -> nn.Module:
        """Load the vision tower and its projection."""
        return load_pretrained(CLIPVisionModelWithProjection.from_pretrained, self.name, dtype=dtype)

    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Return the projected features (N, d)."""
        return model(pixel_values=pixels).image_embeds

    def text_encoder(self) -> TextEncoder:
        """Load the text tower in float32, and the tokenizer."""
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, self.name)
        tower = load_pretrained(CLIPTextModelWithProjection.from_pretrained, self.name, dtype=torch.float32).eval()
        length = tower.config.max_position_embeddings

        @torch.no_grad()
        def encode(texts: list[str]) -> Tensor:
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            return tower(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds

        return encode


class VisionBackbone(_TransformersBackbone):
    """A vision encoder of transformers without a text tower, such as DINOv2 (arXiv 2304.07193) or ViT (2010.11929).

    The feature is the model's pooled output; where it has none, or the checkpoint lacks the weights of its pooler (as
    those of classifiers do), the first token of the last layer.
    """

    has_text = False

    def load(self, dtype: torch.dtype) -> nn.Module:
        """Load the encoder.

        Raises:
            SheetbendError: the checkpoint lacks weights, which would be random.
        """
        model, missing = self._load(dtype)
        if missing and all("pooler" in key for key in missing):
            model, missing = self._load(dtype, add_pooling_layer=False)
        if missing:
            raise SheetbendError(
                f"backbone {self.name!r} holds no {missing[0]}, which {type(model).__name__} needs and would be "
                "random; give a checkpoint of the whole encoder"
            )
        return model

    def _load(self, dtype: torch.dtype, **options: bool) -> tuple[nn.Module, list[str]]:
        try:
            model, info = load_pretrained(
                AutoModel.from_pretrained, self.name, dtype=dtype, output_loading_info=True, **options
            )
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise SheetbendError(
                f"backbone {self.name!r} is no vision encoder of transformers ({reason}); give one, such as DINOv2"
            ) from None
        return model.eval(), sorted(info["missing_keys"])

    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Return the pooled features (N, d)."""
        out = model(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _image_processor(name: str) -> dict[str, Any]:
    """Return the preprocessor configuration of ``name``, with what the processor's class adds to it."""
    try:
        processor = load_pretrained(AutoImageProcessor.from_pretrained, name).to_dict()
    except (ValueError, TypeError, ImportError) as error:
        bare = Path(locate(name)).is_dir() and not (Path(locate(name)) / "preprocessor_config.json").is_file()
        if isinstance(error, SheetbendError) and not bare:
            raise
        reason = "no such file" if bare else " ".join(str(error).split())[:150]
        raise SheetbendError(
            f"backbone {name!r} has no image processor ({reason}); give a model of images with its "
            "preprocessor_config.json"
        ) from None
    if not processor.get("do_rescale", True) or abs(processor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise SheetbendError(
            f"backbone {name!r}: its image processor does not divide pixels by 255; give a model that takes them so"
        )
    return {key: value for key, value in processor.items() if value is not None}
