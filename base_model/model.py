"""The model itself: a small transformers CLIPModel, and the folder that the three from_pretrained calls read."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from base_model.pool import PIXELS
from base_model.tokenizer import CONTEXT

PATCH = 4  # pixels a side
MEAN, STD = 0.5, 0.5  # of each channel, for values in [0, 1]


def make_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 128, layers: int = 4, text_layers: int = 2
) -> CLIPModel:
    """Return an untrained CLIP for 32 x 32 pixels: patches of 4, and ``hidden`` channels in both towers."""
    shared = {
        "hidden_size": hidden,
        "num_attention_heads": hidden // 32,
        "projection_dim": hidden,
        "hidden_act": "gelu",
    }
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            **shared,
            **marks,
            "vocab_size": len(tokenizer),
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": text_layers,
            "max_position_embeddings": CONTEXT,
        },
        vision_config={
            **shared,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "image_size": PIXELS,
            "patch_size": PATCH,
        },
        projection_dim=hidden,
    )
    return CLIPModel(config)


def choose_patches(count: int, keep: float, generator: torch.Generator) -> Tensor | None:
    """Draw the patches that the image tower shall see in training, int64 (count, kept); None means all.

    Fewer patches make training faster (FLIP, https://arxiv.org/abs/2212.00794).
    """
    patches = (PIXELS // PATCH) ** 2
    if keep >= 1.0:
        return None
    return torch.rand(count, patches, generator=generator).argsort(dim=1)[:, : max(1, int(keep * patches))]


def encode_images(model: CLIPModel, pixels: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Return projected image features, float (B, D).

    Args:
        model: The model.
        pixels: Normalised images, float (B, 3, 32, 32).
        chosen: From `choose_patches`; None for all.
    """
    tower = model.vision_model
    hidden = tower.embeddings(pixels)
    if chosen is not None:
        chosen = chosen + 1  # position 0 is the class token
        hidden = torch.cat([hidden[:, :1], hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[2]))], dim=1)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
    return model.visual_projection(tower.post_layernorm(hidden[:, 0]))


def encode_texts(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Return projected text features, float (B, D)."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    return model.get_text_features(**tokens).pooler_output


def normalise(images: Tensor) -> Tensor:
    """Turn uint8 (B, 3, H, W) or floats in [0, 1] into what the model expects."""
    values = images.float() / 255 if images.dtype == torch.uint8 else images
    return (values - MEAN) / STD


def save_model(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write weights, configuration, tokenizer and preprocessor configuration to ``folder``."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows, too
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    size = {"height": PIXELS, "width": PIXELS}
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": False,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    text = json.dumps(preprocessor, indent=2) + "\n"
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


@torch.no_grad()
def class_vectors(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, class_names: tuple[str, ...], templates: tuple[str, ...]
) -> Tensor:
    """Return one unit vector a class, float (C, D): the mean over its prompts."""
    rows = []
    for name in class_names:
        features = encode_texts(model, tokenizer, [template.format(name) for template in templates])
        mean = torch.nn.functional.normalize(features, dim=-1).mean(0)
        rows.append(torch.nn.functional.normalize(mean, dim=-1))
    return torch.stack(rows)


@torch.no_grad()
def classify(model: CLIPModel, images: Tensor, vectors: Tensor, batch: int = 512) -> Tensor:
    """Return the class nearest to each image, int64 (B,), for uint8 images (B, 3, 32, 32)."""
    parts = [encode_images(model, normalise(part)) @ vectors.T for part in images.split(batch)]
    return torch.cat(parts).argmax(-1)
