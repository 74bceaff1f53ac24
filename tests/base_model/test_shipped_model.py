import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from base_model.concepts import all_concepts
from base_model.model import class_vectors, classify, normalise
from base_model.pool import render_concept

FOLDER = Path(__file__).resolve().parents[2] / "lightning_modules" / "base_models" / "tiny-clip"


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_folder_is_small_and_names_no_place_of_this_machine():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    for path in files:
        if path.suffix in (".json", ".md"):
            assert not re.search(r"(^|[\s\"'(=])/(home|work|tmp|root|usr|opt)/", path.read_text(encoding="utf-8")), (
                path.name
            )


def test_the_tokenizer_is_small_and_writes_any_word(tokenizer):
    assert len(tokenizer) <= 4000
    for word in ("quetzalcoatlus", "naïve café", "雪"):
        ids = tokenizer(word).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == word
    assert len(tokenizer("zero").input_ids) == 3  # a class name of ours is one token


def test_text_features_are_read_at_the_end_mark(model, tokenizer):
    texts = ["a photo of the digit 3.", "a photo of quetzalcoatlus"]
    together = tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        padded = model.get_text_features(**together).pooler_output
        alone = torch.cat([model.get_text_features(**tokenizer(t, return_tensors="pt")).pooler_output for t in texts])
    assert torch.isfinite(padded).all()
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(padded[0], padded[1], atol=0.1)


def test_the_vision_tower_alone_gives_the_features_of_the_whole(model):
    vision = CLIPVisionModelWithProjection.from_pretrained(FOLDER).eval()
    pixels = normalise(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        features = vision(pixel_values=pixels).image_embeds
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "phrases", "template", "least"),
    [
        (
            [f"digit {k}" for k in range(10)],
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
            "the digit {}.",
            0.6,
        ),
        (["brick wall", "grass", "gravel"], ["brick wall", "grass", "gravel"], "a photo of {}.", 0.7),
    ],
)
def test_fresh_pictures_are_classified_well_above_chance(model, tokenizer, names, phrases, template, least):
    positions = {concept.name: k for k, concept in enumerate(all_concepts())}
    rng = np.random.default_rng(12345)
    labels = torch.arange(len(names)).repeat(12)
    images = torch.stack([torch.from_numpy(render_concept(rng, positions[names[k]])) for k in labels])
    vectors = class_vectors(model, tokenizer, tuple(phrases), (template,))
    accuracy = (classify(model, images, vectors) == labels).float().mean()
    assert accuracy >= least
