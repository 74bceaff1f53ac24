"""Vision encoders of transformers and open_clip: features, transforms, names, and what cannot be loaded."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from datamodules.images import ImageTransform
from lightning_modules.image_backbones import image_backbone
from mergers import SheetbendError
from tests.lightning_modules.image_models import (
    OPEN_CLIP_CONFIG,
    open_clip_model,
    save_dinov2,
    save_open_clip,
    save_vit,
)

PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The tiny model under a name of its own in open_clip's list."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    (tmp_path / "tiny-ViT.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "tiny-ViT.json")
    return "tiny-ViT"


def refused(name, *words):
    with pytest.raises(SheetbendError) as caught:
        backbone = image_backbone(name)
        backbone.load(torch.float32)
        backbone.text_encoder()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@torch.no_grad()
def test_vit_gives_its_pooled_output(tmp_path):
    backbone = image_backbone(save_vit(tmp_path))
    assert backbone.transform == ImageTransform(8, None, "squash", "bilinear") and not backbone.has_text
    expected = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=PIXELS).pooler_output
    torch.testing.assert_close(backbone.embed(backbone.load(torch.float32), PIXELS), expected)


@torch.no_grad()
def test_a_classifier_without_pooler_gives_its_first_token(tmp_path):
    backbone = image_backbone(save_vit(tmp_path, classifier=True))
    expected = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=PIXELS).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.embed(backbone.load(torch.float32), PIXELS), expected)


@torch.no_grad()
def test_dinov2_gives_its_first_token_at_the_size_of_its_processor(tmp_path):
    backbone = image_backbone(save_dinov2(tmp_path))
    assert backbone.transform == ImageTransform(8, 10, "crop", "bicubic")
    assert (backbone.mean, backbone.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    features = backbone.embed(backbone.load(torch.float32), PIXELS)
    expected = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=PIXELS).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)
    half = backbone.embed(backbone.load(torch.bfloat16), PIXELS.bfloat16())
    torch.testing.assert_close(half.float(), features, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_open_clip_folder_gives_both_towers(tmp_path):
    backbone = image_backbone(save_open_clip(tmp_path / "tiny"))
    assert backbone.transform == ImageTransform(8, None, "squash", "bilinear", "even")
    assert (backbone.mean, backbone.std, backbone.base_name) == ((0.5,) * 3, (0.25,) * 3, "open_clip:tiny")
    model = open_clip_model()
    torch.testing.assert_close(backbone.embed(backbone.load(torch.float32), PIXELS), model.encode_image(PIXELS))
    tokens = open_clip.SimpleTokenizer(context_length=12)(["a cat", "a dog"])
    torch.testing.assert_close(backbone.text_encoder()(["a cat", "a dog"]), model.encode_text(tokens))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["safetensors", "pt", "trained", "in a module", "tower", "without text"])
def test_open_clip_model_with_ones_own_file(tmp_path, registered, kind):
    model = open_clip_model()
    state, path = model.state_dict(), tmp_path / "own.pt"
    state = {
        "trained": {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}},
        "in a module": {f"model.{key}": value for key, value in state.items()},
        "tower": model.visual.state_dict(),
        "without text": {f"model.{k}": v for k, v in state.items() if not k.startswith("transformer.")},
    }.get(kind, state)
    if kind == "safetensors":
        path = tmp_path / "own.safetensors"
        save_file(state, path)
    else:
        torch.save(state, path)
    backbone = image_backbone(f"open_clip:{registered}/{path}")
    assert backbone.base_name == f"open_clip:tiny-ViT/{path.name}"
    torch.testing.assert_close(backbone.embed(backbone.load(torch.float32), PIXELS), model.encode_image(PIXELS))
    if kind in ("tower", "without text"):
        refused(f"open_clip:{registered}/{path}", "holds no text tower", "head: prototypes")
    else:
        assert backbone.text_encoder()(["a cat"]).shape == (1, 8)


def test_keys_follow_the_weights(tmp_path, registered):
    names = [save_open_clip(tmp_path / "tiny"), save_open_clip(tmp_path / "again")]
    torch.save(open_clip_model().state_dict(), tmp_path / "one.pt")
    keys = [image_backbone(name).content_key() for name in (*names, f"open_clip:{registered}/{tmp_path / 'one.pt'}")]
    assert keys[0] == keys[1] != keys[2]
    state = {key: value + 1 for key, value in open_clip_model().state_dict().items()}
    torch.save(state, tmp_path / "one.pt")
    assert image_backbone(f"open_clip:{registered}/{tmp_path / 'one.pt'}").content_key() != keys[2]


def test_published_tags_bring_their_own_preprocessing():
    openai = image_backbone("open_clip:ViT-B-32/openai")
    assert openai.base_name == "open_clip:ViT-B-32/openai"
    assert openai.transform == ImageTransform(224, None, "crop", "bicubic", "even")
    siglip = image_backbone("open_clip:ViT-B-16-SigLIP/webli")
    assert siglip.transform.fit == "squash" and siglip.mean == (0.5, 0.5, 0.5)


def test_a_file_has_the_preprocessing_that_all_tags_of_its_model_share(tmp_path):
    torch.save({}, tmp_path / "own.pt")
    assert image_backbone(f"open_clip:ViT-B-16-SigLIP/{tmp_path / 'own.pt'}").mean == (0.5, 0.5, 0.5)


def test_openai_weights_run_with_quick_gelu(tmp_path, registered, monkeypatch):
    """The tag knows that the weights need it, whichever name of the model was given."""
    from lightning_modules import open_clip_backbone

    tag = {"hf_hub": "owner/name/", "quick_gelu": True}
    monkeypatch.setattr(open_clip_backbone, "get_pretrained_cfg", lambda model, tag_name: tag if tag_name else {})
    save_open_clip(tmp_path)
    monkeypatch.setattr(open_clip_backbone, "fetch", lambda repository, patterns: tmp_path)
    tower = image_backbone(f"open_clip:{registered}/openai").load(torch.float32)
    assert type(tower.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_what_cannot_be_loaded_is_one_line(tmp_path, registered, tiny_clip):
    refused("open_clip:ViT-B-33/openai", "open_clip has no model 'ViT-B-33'", "ViT-B-32", "MODEL/TAG")
    refused("open_clip:ViT-B-32/opnai", "'opnai' is no file and no pretrained tag of ViT-B-32 (openai,")
    refused("open_clip:ViT-B-32", "'' is no file and no pretrained tag")
    refused("open_clip:ViT-B-32/openai", "HF_HUB_OFFLINE", "timm/vit_base_patch32_clip_224.openai", "MODEL/FILE")
    refused("open_clip:hf-hub:someone/something", "HF_HUB_OFFLINE", "someone/something")
    (tmp_path / "empty").mkdir()
    refused(f"open_clip:{tmp_path / 'empty'}", "has no open_clip_config.json")
    save_open_clip(tmp_path / "bare")
    (tmp_path / "bare" / "open_clip_model.safetensors").unlink()
    refused(f"open_clip:{tmp_path / 'bare'}", "has no weights")
    (tmp_path / "bare" / "open_clip_model.safetensors").write_bytes(b"none")
    refused(f"open_clip:{tmp_path / 'bare'}", "does not fit the model")
    torch.save({"visual.conv1.weight": torch.ones(2)}, tmp_path / "odd.pt")
    refused(f"open_clip:{registered}/{tmp_path / 'odd.pt'}", "odd.pt is of another model")
    torch.save({"visual.foreign": torch.ones(2)}, tmp_path / "odd.pt")
    refused(f"open_clip:{registered}/{tmp_path / 'odd.pt'}", "odd.pt has no visual.")
    torch.save(open_clip_model(), tmp_path / "module.pt")  # as Task Arithmetic published its checkpoints
    refused(f"open_clip:{registered}/{tmp_path / 'module.pt'}", "holds more than tensors", "state dict")


def test_models_of_no_images_are_one_line(tmp_path):
    from transformers import BertConfig, BertModel, SiglipConfig

    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    refused(str(tmp_path / "bert"), "no image processor")
    SiglipConfig().save_pretrained(tmp_path / "siglip")
    refused(str(tmp_path / "siglip"), "is a siglip of several towers", "open_clip:ViT-B-16-SigLIP/webli")
    save_vit(tmp_path / "torn")
    tensors = {"embeddings.cls_token": torch.zeros(1, 1, 16)}
    save_file(tensors, tmp_path / "torn" / "model.safetensors", {"format": "pt"})
    refused(str(tmp_path / "torn"), "holds no", "would be random")
    save_vit(tmp_path / "unscaled")
    (tmp_path / "unscaled" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_rescale": false, "size": 8}'
    )
    refused(str(tmp_path / "unscaled"), "does not divide pixels by 255")
