"""LoRA settings, and the adapters of a PEFT model as updates that `mergers` understands."""

from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from lightning_modules.checks import check_number
from mergers import Adapter, LowRankUpdate, SheetbendError
from mergers.models import PEFT_PREFIX
from mergers.seeding import derive_seed


@dataclass(frozen=True)
class LoRA:
    """Shape of the adapters (Hu et al., 2021, arXiv 2106.09685).

    Attributes:
        r: rank; one number, or a map from task name to rank.
        alpha: scale of the update, which is ``alpha / r * B @ A``; none means alpha = r, a scale of one.
        dropout: probability with which an input of A is dropped while training.
        target_modules: endings of the names of the linear layers that get an adapter.
    """

    r: int | dict[str, int] = 16
    alpha: float | None = None
    dropout: float = 0.1
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])

    def __post_init__(self):
        for rank in self.r.values() if isinstance(self.r, dict) else [self.r]:
            check_number("lora.r", rank, least=1)
        if self.alpha is not None:
            check_number("lora.alpha", self.alpha, above=0)
        check_number("lora.dropout", self.dropout, least=0, below=1)
        if not self.target_modules:
            raise SheetbendError("lora.target_modules is empty; name endings of linear layers, such as q_proj")

    def config(self, task: str, base_name: str) -> LoraConfig:
        """Return PEFT's configuration of one task's adapter."""
        if isinstance(self.r, dict) and task not in self.r:
            raise SheetbendError(f"lora.r names no rank for task {task!r}; add it, or give one number for all")
        rank = self.r[task] if isinstance(self.r, dict) else self.r
        return LoraConfig(
            r=rank,
            lora_alpha=rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules),
            base_model_name_or_path=base_name,
        )


def wrap(backbone: nn.Module, configs: dict[str, LoraConfig], seed: int) -> PeftModel:
    """Freeze ``backbone`` and give it one adapter a task.

    An adapter's initial values depend on (seed, task) alone, so that they don't change with the other tasks.
    """
    model = None
    for task, config in configs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, task, "init"))
            try:
                if model is None:
                    model = PeftModel(backbone, config, adapter_name=task)
                else:
                    model.add_adapter(task, config)
            except ValueError as error:
                if "arget modules" not in str(error):
                    raise
                names = ", ".join(sorted(config.target_modules))
                raise SheetbendError(
                    f"lora.target_modules {names}: no layer of {type(backbone).__name__} has such a name; "
                    "its linear layers end in "
                    + ", ".join(sorted({n.rpartition(".")[2] for n, m in backbone.named_modules() if _linear(m)}))
                ) from None
    for name, layer in lora_layers(model).items():
        if not isinstance(layer.get_base_layer(), nn.Linear):
            raise SheetbendError(
                f"lora.target_modules reach {name}, a {type(layer.get_base_layer()).__name__}; only linear layers merge"
            )
        if any(config.r > min(layer.get_base_layer().weight.shape) for config in configs.values()):
            raise SheetbendError(
                f"lora.r is above {min(layer.get_base_layer().weight.shape)}, all that {name} has; give a smaller rank"
            )
    return model


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Return the layers that carry adapters, by their name in the bare backbone."""
    return {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def adapter_parameters(model: PeftModel, task: str) -> dict[str, nn.Parameter]:
    """Return the trainable tensors of one task's adapter, by their name in ``model``."""
    marks = (f".lora_A.{task}.", f".lora_B.{task}.")
    return {name: p for name, p in model.named_parameters() if any(mark in name for mark in marks)}


def live_adapter(model: PeftModel, task: str, base_name: str) -> Adapter:
    """Copy one task's adapter as it stands to CPU float32.

    Returns:
        `mergers.Adapter` of `LowRankUpdate`: A (r, in), B (out, r), scale.
    """
    updates = {
        name: LowRankUpdate(
            A=layer.lora_A[task].weight.detach().float().cpu().clone(),
            B=layer.lora_B[task].weight.detach().float().cpu().clone(),
            scale=float(layer.scaling[task]),
        )
        for name, layer in lora_layers(model).items()
        if task in layer.lora_A
    }
    return Adapter(updates, name=task, base_model=base_name)
