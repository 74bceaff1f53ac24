import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from lightning_modules import ImageClassifier
from tests.stand_ins import StandIns


@pytest.fixture
def built(tiny_clip):
    model = ImageClassifier(tiny_clip)
    model.build(StandIns(["hue", "shade"]).tasks)
    return model.eval()


@torch.no_grad()
def test_zero_shot_logits_are_those_of_clip(built, tiny_clip):
    """One prompt a class: the logits are CLIP's own, at scale 100."""
    clip, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    tokens = tokenizer(["a photo of red.", "a photo of green.", "a photo of blue."], return_tensors="pt")
    out = clip(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=(images / 255 - 0.5) / 0.5
    )
    expected = 100 * out.logits_per_image / clip.logit_scale.exp()
    torch.testing.assert_close(built.logits(built(images), "hue"), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_of_another_size_are_resized(built):
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    constant = images[:, :, :1, :1].expand(4, 3, 20, 20)
    torch.testing.assert_close(built(constant), built(constant[:, :, :8, :8]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logit_scale_multiplies(tiny_clip, built):
    hotter = ImageClassifier(tiny_clip, logit_scale=1e4)
    hotter.build(StandIns(["hue", "shade"]).tasks)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(
        hotter.eval().logits(hotter(images), "shade"), 100 * built.logits(built(images), "shade"), rtol=1e-4, atol=1e-3
    )


def test_only_adapters_are_trained(built):
    trained = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
