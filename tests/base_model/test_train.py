import itertools
import json

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from base_model.train import augment, contrastive_loss, parse_arguments, schedule, train

TINY = ["--samples", "16", "--steps", "2", "--batch", "8", "--hidden", "32", "--layers", "1", "--vocabulary", "400"]


def test_two_steps_write_a_folder_that_loads_and_repeats(tmp_path):
    for name in ("first", "second"):
        train(parse_arguments(["--output", str(tmp_path / name), "--workers", "1", "--threads", "2", *TINY]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"]
    model = CLIPModel.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    features = model.get_text_features(**tokenizer(["zero"], return_tensors="pt")).pooler_output
    assert torch.isfinite(features).all()
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert record["options"]["steps"] == 2 and "output" not in record["options"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_pairs_of_one_concept_are_not_negatives_of_each_other():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scale = torch.tensor(4.6)
    same = contrastive_loss(features, features, torch.tensor([0, 0, 1]), scale)
    apart = contrastive_loss(features, features, torch.tensor([0, 1, 2]), scale)
    # Two equal targets of one half each cannot go below their entropy, log 2, in two of the three rows.
    assert same == pytest.approx(2 / 3 * torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert apart == pytest.approx(same.item(), abs=1e-4)
    swapped = contrastive_loss(features, features[[2, 0, 1]], torch.tensor([0, 0, 1]), scale)
    assert swapped > 10


def test_augmented_pictures_stay_in_range_and_mirror_only_where_allowed():
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    images[..., :8] = 255
    result = augment(images, torch.zeros(64, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert result.min() >= 0 and result.max() <= 1
    assert (result[..., :3].mean((1, 2, 3)) > result[..., -3:].mean((1, 2, 3))).all()
    result = augment(images, torch.ones(64, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert (result[..., :3].mean((1, 2, 3)) < result[..., -3:].mean((1, 2, 3))).any()


def test_the_learning_rate_rises_and_falls():
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == factors[9] == 1.0
    assert factors[-1] < 0.001 and all(a >= b for a, b in itertools.pairwise(factors[9:]))
