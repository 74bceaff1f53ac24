"""Tiny vision encoders in the formats of transformers and open_clip."""

import json

import torch
from torch import nn

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
OPEN_CLIP_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def strengthened(model):
    """Make initial values large enough that classes do not all look alike."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.25)
    return model


def save_transformers(model, folder, processor):
    strengthened(model).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def save_vit(folder, classifier=False):
    """ViT with a trained pooler, or a classifier's checkpoint without one."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(**SIZES, intermediate_size=32)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": 8,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return save_transformers((ViTForImageClassification if classifier else ViTModel)(config), folder, processor)


def save_dinov2(folder):
    """DINOv2 whose own size is 12, with a processor that crops 8."""
    from transformers import Dinov2Config, Dinov2Model

    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 10},
        "crop_size": {"height": 8, "width": 8},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    return save_transformers(Dinov2Model(Dinov2Config(**{**SIZES, "image_size": 12}, mlp_ratio=2)), folder, processor)


def open_clip_model():
    """A tiny CLIP of open_clip."""
    from open_clip import CLIP

    torch.manual_seed(0)
    return strengthened(CLIP(**OPEN_CLIP_CONFIG)).eval()


def save_open_clip(folder):
    """What open_clip pushes to the hub."""
    from safetensors.torch import save_file

    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP_CONFIG, "preprocess_cfg": preprocess})
    )
    save_file(open_clip_model().state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"
