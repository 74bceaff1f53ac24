"""Fine-tuning and evaluation of LoRA adapters on Lightning."""

from lightning_modules.adaptation import Adaptation
from lightning_modules.base import LoRATasks
from lightning_modules.image_classifier import ImageClassifier
from lightning_modules.lora import LoRA
from lightning_modules.processes import AdapterDDP
from lightning_modules.scores import Score
from lightning_modules.sequence_classifier import SequenceClassifier
from lightning_modules.test_time_adaptation import TestTimeAdaptation
from lightning_modules.text_generator import TextGenerator
from lightning_modules.variants import Variant

__all__ = [
    "Adaptation",
    "AdapterDDP",
    "ImageClassifier",
    "LoRA",
    "LoRATasks",
    "Score",
    "SequenceClassifier",
    "TestTimeAdaptation",
    "TextGenerator",
    "Variant",
]
