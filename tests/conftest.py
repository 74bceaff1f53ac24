"""Tiny stand-ins that every part of the suite shares: a CLIP of a few thousand weights, and image tasks to learn."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from launch.cli import BENIGN_WARNINGS

# Every other warning fails a test; one that is expected is caught by `pytest.warns`, or named on the test.
EXPECTED_WARNINGS = (
    *BENIGN_WARNINGS,  # each with its reason there
    ".*gradient_checkpointing_enable. is deprecated",  # from transformers 5.9; 5.0 has no other name
    ".*Could not find a config file in",  # PEFT asks the hub about the vocabulary, and tests have none
    ".*callbacks used to create the checkpoint need to be provided",  # bare trainers, without the CLI's callbacks
)


def pytest_configure(config):
    """Let expected warnings pass."""
    for pattern in EXPECTED_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}")


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """Sizes are tiny, so threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard():
    """Commands that tests start inherit whether it is ignored, which it is where the suite runs in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache, or inherits another test's global seed."""
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a random CLIPModel: 8 x 8 images, two layers, a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "a",
        "photo",
        "of",
        "red",
        "green",
        "blue",
        "dark",
        "light",
        ".",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": 16,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = CLIPConfig(
        text_config={**tower, **text, "projection_dim": 8},
        vision_config={**tower, "image_size": 8, "patch_size": 4, "projection_dim": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:  # CLIP's own initial values are so small that all classes look alike
            torch.nn.init.normal_(parameter, std=0.3 if "embedding" in name else 0.25)
    folder = tmp_path_factory.mktemp("models") / "test-clip"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], '
        '"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}}'
    )
    return str(folder)
