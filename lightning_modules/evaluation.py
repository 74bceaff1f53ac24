"""Every batch through every variant: how weights are swapped, measured and let go."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from peft import PeftModel
from torch import Tensor, nn

from lightning_modules.full_checkpoints import Donors, Unadapted
from lightning_modules.lora import adapter_layers, without_adapters
from lightning_modules.metrics import Meter
from lightning_modules.scores import Score, headline_scores, headlines
from lightning_modules.variants import (
    FINETUNED,
    PRETRAINED,
    Places,
    Variant,
    finetuned,
    merged_variant,
    pretrained,
    replaced,
)
from mergers import Adapter


class Sweep:
    """What one sweep of the data has found in the model, so that not each batch looks for it again.

    Args:
        model: keeps its modules and parameters until the sweep ends.
    """

    def __init__(self, model: nn.Module):
        self.layers, self.places = adapter_layers(model), Places(model)
        self.active: str | None = None  # the task whose adapter is


class VariantTester(LightningModule, ABC):
    """One backbone with the adapters of several tasks, run as any of its variants in validation and test.

    Args:
        merged_weights: how merged models are held while they are tested; see `LoRATasks`.
    """

    # What its examples are, which a datamodule says of its own too; none goes with every datamodule.
    takes: ClassVar[Literal["images", "texts", "questions"] | None] = None

    def __init__(self, merged_weights: Literal["auto", "dense", "branch"] = "auto"):
        super().__init__()
        self.merged_weights = merged_weights
        self.model: PeftModel | Unadapted | None = None
        self.donors = Donors()
        self.tasks: tuple[Any, ...] = ()
        self.variants: dict[str, Variant] = {FINETUNED: finetuned()}
        self.evaluator: Meter | None = None
        self._scores: list[Score] = []
        self._sweep: Sweep | None = None

    @abstractmethod
    def build_evaluator(self, tasks: Sequence[Any]) -> Meter:
        """Make the metrics of ``tasks``."""

    @abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """Run the backbone as it stands; return features (N, d)."""

    @abstractmethod
    def logits(self, features: Tensor, task: str) -> Tensor:
        """Return the logits (N, C) of the classes of ``task``."""

    def joint_logits(self, features: Tensor) -> dict[str, Tensor]:
        """Return the logits (N, J) of the classes of all tasks in each joint label space; empty where there is none."""
        return {}

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks, in order."""
        return [task.name for task in self.tasks]

    def task_logits(self, features: Tensor, task: str) -> Tensor:
        """Return `logits`, minus infinity for the classes that the task's examples never have."""
        logits = self.logits(features, task)
        own = next(one for one in self.tasks if one.name == task)
        if not own.absent:
            return logits
        columns = torch.tensor([own.class_names.index(name) for name in own.absent], device=logits.device)
        return logits.index_fill(-1, columns, -math.inf)

    def activate(self, task: str) -> None:
        """Send the forward pass through the adapter of ``task``."""
        self.model.set_adapter(task)

    def set_variants(self, merged: dict[str, Variant]) -> None:
        """Test the pretrained and the finetuned weights, and ``merged`` after them."""
        self.variants = {PRETRAINED: pretrained(), FINETUNED: finetuned(), **merged}

    @property
    def merges_as_branches(self) -> bool:
        """Whether low-rank merges are tested as branches beside their layers, not as dense weights."""
        large = sum(p.numel() for p in self.model.get_base_model().parameters()) > 1e9
        return self.merged_weights == "branch" or (self.merged_weights == "auto" and large)

    def variant(self, description: str, merged: Adapter) -> Variant:
        """Return the base model plus the updates of ``merged`` as a `Variant`."""
        return merged_variant(description, merged, self.model, self.merges_as_branches)

    @contextlib.contextmanager
    def using(self, variant: Variant, task: str) -> Iterator[None]:
        """Let the backbone run as ``variant``, on examples of ``task``."""
        if variant.own_adapter and task in self.donors.adapters:
            variant = self.donors.variant(task, self.model, any(one.ensemble for one in self.variants.values()))
        sweep = self._sweep
        if variant.own_adapter:
            if sweep is None or sweep.active != task:
                self.activate(task)
            if sweep is not None:
                sweep.active = task
            yield
        else:
            layers, places = (None, None) if sweep is None else (sweep.layers, sweep.places)
            with without_adapters(self.model, layers), replaced(self.model, variant, places):
                yield

    @torch.no_grad()
    def features_of(self, variant: Variant, inputs: Any, task: str) -> Tensor:
        """Run ``inputs`` of ``task`` through ``variant``; return features (N, d)."""
        with self.using(variant, task):
            return self(inputs)

    @torch.no_grad()
    def evaluate(self, name: str, variant: Variant, batch: Any) -> None:
        """Run one batch through ``variant`` and count what comes out under ``name``."""
        if variant.ensemble:
            self._evaluate_ensemble(name, batch)
            return
        features = self.features_of(variant, batch.inputs, batch.task)
        logits, joint = self.task_logits(features, batch.task), self.joint_logits(features)
        if variant.tasks is not None:
            joint = {space: self.evaluator.joint[space].among(values, variant.tasks) for space, values in joint.items()}
        self.evaluator.update(name, batch.task, logits, joint, batch.labels)

    @torch.no_grad()
    def rehearse(self, batch: Any) -> None:
        """Do what testing one batch in one variant does, and count nothing."""
        features = self.features_of(finetuned(), batch.inputs, batch.task)
        self.task_logits(features, batch.task), self.joint_logits(features)

    def _evaluate_ensemble(self, name: str, batch: Any) -> None:
        largest: dict[str, Tensor] = {}
        for task in self.task_names:
            features = self.features_of(finetuned(), batch.inputs, task)
            for space, logits in self.joint_logits(features).items():
                largest[space] = torch.maximum(largest[space], logits) if space in largest else logits
        self.evaluator.update(name, batch.task, None, largest, batch.labels)

    def _evaluate(self, batch: Any) -> None:
        if batch.labels is None:  # a last batch of fewer examples than there are processes
            return
        for name, variant in self.variants.items():
            if variant.tasks is None or batch.task in variant.tasks:
                self.evaluate(name, variant, batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run one batch through every variant."""
        self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run one batch through every variant."""
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the last measurement."""
        self.evaluator.reset()
        self._sweep = Sweep(self.model)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Note what was measured."""
        self._scores, self._sweep = self.evaluator.scores(), None
        self.donors.release()
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Note what was measured."""
        self._scores, self._sweep = self.evaluator.scores(), None
        self.donors.release()
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        # For the progress bar and for callbacks that monitor; ResultsCallback writes the curves of all variants.
        own = [score for score in headline_scores(self._scores) if score.variant == FINETUNED]
        for score in own:
            self.log(f"{stage}_{score.metric}/{score.task}", score.value, logger=False, sync_dist=True)
        if own:
            mean = sum(score.value for score in own) / len(own)
            self.log(f"{stage}_score", mean, prog_bar=True, logger=False, sync_dist=True)

    def scores(self) -> list[Score]:
        """Return what the last validation or test measured."""
        return list(self._scores)

    def metric(self, task: str) -> str:
        """Return the name of the metric that stands for ``task``."""
        return headlines(self._scores).get(task, "accuracy")
