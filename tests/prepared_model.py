"""A model that only says what its examples are prepared with, for tests of what happens before a run."""

from functools import cached_property

from transformers import AutoTokenizer

from datamodules.images import ImageTransform
from lightning_modules import LoRATasks
from lightning_modules.backbones import load_pretrained


class PreparedModel(LoRATasks):
    """Takes 6 x 6 pictures, or texts; is never built."""

    image_transform = ImageTransform(6)
    max_length = None

    @cached_property
    def tokenizer(self):
        return load_pretrained(AutoTokenizer.from_pretrained, self.backbone_name)

    def build_backbone(self):
        raise AssertionError("prepare must not build the model")

    build_heads = build_evaluator = forward = logits = None
