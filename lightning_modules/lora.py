"""LoRA settings, and the adapters of a PEFT model as updates that `mergers` understands."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_modules.checks import check_number
from lightning_modules.fused_attention import CUSTOM_MODULES, FusedAttention
from mergers import Adapter, LowRankUpdate, SheetbendError
from mergers.models import PEFT_PREFIX
from mergers.seeding import derive_seed

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRA:
    """Shape of the adapters (Hu et al., 2021, arXiv 2106.09685).

    Attributes:
        r: rank; one number, or a map from task name to rank.
        alpha: scale of the update, which is ``alpha / r * B @ A``; none means alpha = r, a scale of one.
        dropout: probability with which an input of A is dropped while training.
        target_modules: endings of the names of the layers that get an adapter: linear layers (transformers' ``Conv1D``
            too), or torch's ``MultiheadAttention`` (``attn`` in open_clip), of which query, key and value are adapted.
            A string is PEFT's: ``all-linear`` for all of them, else a regular expression for whole names.
    """

    r: int | dict[str, int] = 16
    alpha: float | None = None
    dropout: float = 0.1
    target_modules: list[str] | str = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])

    def __post_init__(self):
        for rank in self.r.values() if isinstance(self.r, dict) else [self.r]:
            check_number("lora.r", rank, least=1)
        if self.alpha is not None:
            check_number("lora.alpha", self.alpha, above=0)
        check_number("lora.dropout", self.dropout, least=0, below=1)
        if not self.target_modules:
            raise SheetbendError("lora.target_modules is empty; name endings of linear layers, such as q_proj")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise SheetbendError(
                    f"lora.target_modules {self.target_modules!r} is no regular expression ({error}); give a list of "
                    "endings, or all-linear"
                ) from None

    def config(self, task: str, base_name: str) -> LoraConfig:
        """Return PEFT's configuration of one task's adapter."""
        if isinstance(self.r, dict) and task not in self.r:
            raise SheetbendError(f"lora.r names no rank for task {task!r}; add it, or give one number for all")
        rank = self.r[task] if isinstance(self.r, dict) else self.r
        chosen = self.target_modules
        return LoraConfig(
            r=rank,
            lora_alpha=rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=chosen if isinstance(chosen, str) else list(chosen),
            base_model_name_or_path=base_name,
        )


def wrap(backbone: nn.Module, configs: dict[str, LoraConfig], seed: int) -> PeftModel:
    """Freeze ``backbone`` and give it one adapter a task.

    An adapter's initial values depend on (seed, task) alone, so that they don't change with the other tasks.

    Raises:
        SheetbendError: target_modules name no layer, or one that cannot be adapted; or a rank is above all it has.
    """
    adaptable = adaptable_layers(backbone)
    model = None
    for task, config in configs.items():
        if config.target_modules == ALL_LINEAR and _has_fused(backbone):
            config.target_modules = set(adaptable)  # PEFT's own list has no fused attention
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, task, "init"))
            try:
                model = add_adapter(model or backbone, task, config)
            except (TypeError, ValueError) as error:
                names = (
                    config.target_modules
                    if isinstance(config.target_modules, str)
                    else ", ".join(sorted(config.target_modules))
                )
                problem = (
                    f"no layer of {type(backbone).__name__} has such a name"
                    if "arget modules" in str(error) or "No modules" in str(error)
                    else " ".join(str(error).split()).partition(". ")[0][:120]
                )
                raise SheetbendError(f"lora.target_modules {names}: {problem}; {_endings(adaptable)}") from None
    _check_layers(model, configs, adaptable)
    return model


def add_adapter(model: nn.Module, task: str, config: LoraConfig) -> PeftModel:
    """Return ``model`` as a PEFT model with one more adapter, which has its initial values.

    Args:
        model: a backbone, which is frozen, or a PEFT model.
        task: the adapter's name.
        config: PEFT's configuration; fused attention is told how to run.

    Raises:
        TypeError: PEFT refuses the configuration.
        ValueError: PEFT refuses the configuration.
    """
    config._register_custom_module(CUSTOM_MODULES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT looks at the layer itself
        if isinstance(model, PeftModel):
            model.add_adapter(task, config)
        else:
            model = PeftModel(model, config, adapter_name=task)
    # PEFT corrects it for the first adapter only.
    bases = [layer.get_base_layer() for layer in lora_layers(model).values()]
    config.fan_in_fan_out = any(isinstance(base, Conv1D) for base in bases)
    return model


def adaptable_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that adapters can be given, by name: linear ones, and attention with fused projections.

    The ``out_proj`` of torch's ``MultiheadAttention`` is never called, and is none of them.
    """
    fused = {name for name, module in backbone.named_modules() if isinstance(module, nn.MultiheadAttention)}
    return {
        name: module
        for name, module in backbone.named_modules()
        if name in fused or (isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[0] not in fused)
    }


def _has_fused(backbone: nn.Module) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules())


def _endings(adaptable: dict[str, nn.Module]) -> str:
    """Return what target_modules may name."""
    return f"its linear layers end in {', '.join(sorted({name.rpartition('.')[2] for name in adaptable}))}"


def _check_layers(model: PeftModel, configs: dict[str, LoraConfig], adaptable: dict[str, nn.Module]) -> None:
    """Raise unless every adapter is on a layer where it can be trained, merged and saved."""
    for name, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        if name not in adaptable:
            what = "part of a MultiheadAttention, which never calls it" if "out_proj" in name else type(base).__name__
            raise SheetbendError(
                f"lora.target_modules reach {name}, {what}; only linear layers merge: {_endings(adaptable)}"
            )
        most = min(layer.in_features, layer.out_features)
        if any(config.r > most for config in configs.values()):
            raise SheetbendError(f"lora.r is above {most}, all that {name} has; give a smaller rank")


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Return the layers that carry adapters, by their name in the bare backbone.

    What fused attention has below itself for its ``out_proj`` stays zero, and is left out.
    """
    layers = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    idle = {f"{name}.base_layer.out_proj" for name, layer in layers.items() if isinstance(layer, FusedAttention)}
    return {name: layer for name, layer in layers.items() if name not in idle}


def adapter_parameters(model: PeftModel, task: str) -> dict[str, nn.Parameter]:
    """Return the trainable tensors of one task's adapter, by their name in ``model``."""
    return {
        f"{PEFT_PREFIX}{name}.lora_{factor}.{task}.weight": getattr(layer, f"lora_{factor}")[task].weight
        for name, layer in lora_layers(model).items()
        for factor in "AB"
        if task in layer.lora_A
    }


def adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Return all layers of ``model`` that PEFT can switch off."""
    return [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]


@contextlib.contextmanager
def without_adapters(model: nn.Module, layers: Sequence[BaseTunerLayer] | None = None) -> Iterator[None]:
    """Let ``model`` run without its adapters.

    Args:
        model: with or without adapters.
        layers: what `adapter_layers` returns of it, for who has looked already.

    PEFT's own ``disable_adapter`` takes stock of the whole model first and turns gradients off and on, which for small
    models takes longer than a batch.
    """
    layers = adapter_layers(model) if layers is None else layers
    before = {layer: layer.disable_adapters for layer in layers}
    try:
        for layer in before:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in before.items():
            layer._disable_adapters = disabled


def live_adapter(model: PeftModel, task: str, base_name: str) -> Adapter:
    """Copy one task's adapter as it stands to CPU float32.

    Returns:
        `mergers.Adapter` of `LowRankUpdate`: A (r, in), B (out, r), scale. That of fused attention goes by the name of
        its stacked projections, ``in_proj_weight``, and is (3 d, d).
    """
    updates, kinds = {}, {}
    for name, layer in lora_layers(model).items():
        if task in layer.lora_A:
            fused = isinstance(layer, FusedAttention)
            module = f"{name}.in_proj_weight" if fused else name
            kinds[module] = "in_proj" if fused else "linear"
            updates[module] = LowRankUpdate(
                A=layer.lora_A[task].weight.detach().float().cpu().clone(),
                B=layer.lora_B[task].weight.detach().float().cpu().clone(),
                scale=float(layer.scaling[task]),
            )
    return Adapter(updates, name=task, base_model=base_name, metadata={"kinds": kinds})
