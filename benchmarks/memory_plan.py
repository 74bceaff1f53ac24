"""What Llama-3-8B needs on one card: to train adapters, and to test merges of them; summed from shapes alone.

    python benchmarks/memory_plan.py            # the table, in a minute, with no weights
    python benchmarks/memory_plan.py --check    # the sum of a small Llama against the peak of a real training step

Sizes come from models on torch's meta device, built as for a run: backbone, adapters, what autograd saves.
The check runs on CUDA where there is one, else on the CPU.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForSequenceClassification, LlamaConfig

from lightning_modules.heads import take_head
from lightning_modules.lora import LoRA, adapter_parameters, lora_layers, wrap

GB = 1e9
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SMALL = {
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Setting:
    """A run.

    Attributes:
        config: fields of LlamaConfig.
        tasks: adapters, of which one is trained at a time.
        rank: of each adapter.
        tokens: of a training batch: examples times length.
        dtype: of the frozen backbone; adapters are float32.
    """

    config: dict[str, int]
    tasks: int = 6
    rank: int = 16
    tokens: int = 2000
    dtype: torch.dtype = torch.bfloat16


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps for its backward pass: query, key, value, output and one number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:3], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register("counted", _counted_attention)
AttentionMaskInterface.register("counted", lambda *_, **__: None)


def build(setting: Setting, device: str = "meta", layers: int | None = None, attention: str = "counted") -> PeftModel:
    """Return the backbone without its head, with one adapter a task; of so many layers."""
    layers = setting.config["num_hidden_layers"] if layers is None else layers
    config = LlamaConfig(
        **{**setting.config, "num_hidden_layers": layers}, pad_token_id=0, attn_implementation=attention
    )
    with torch.device(device):
        backbone = AutoModelForSequenceClassification.from_config(config).to(setting.dtype)
        take_head(backbone, "Llama")
        configs = {
            f"task{i}": LoRA(r=setting.rank, target_modules=TARGETS).config(f"task{i}", "")
            for i in range(setting.tasks)
        }
        model = wrap(backbone, configs, seed=0)
    backbone.config.use_cache = False
    model.set_adapter("task0")
    return model.train()


def size(tensors: Iterator[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(setting: Setting, layers: int) -> int:
    """Return the bytes that autograd saves in a forward pass over so many layers, parameters left out."""
    model = build(setting, layers=layers)
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, int] = {}
    kept = []  # so that no storage's number is given to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    ids = torch.ones(1, setting.tokens, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(found.values())


def parameter_bytes(setting: Setting, layers: int) -> dict[str, int]:
    """Return the bytes of the backbone, of one adapter and of the weights it changes, in a model of so many layers."""
    model = build(setting, layers=layers)
    return {
        "backbone": size(p for name, p in model.named_parameters() if ".lora_" not in name),
        "adapter": size(adapter_parameters(model, "task0").values()),
        "changed": size(layer.get_base_layer().weight for layer in lora_layers(model).values()),
    }


def whole(setting: Setting) -> dict[str, int]:
    """Return the bytes of the parameters, and of what is saved for the backward pass, for all layers.

    Layers are alike, so two models tell of any number: one of one layer and one of two.
    """
    one, two = ({**parameter_bytes(setting, n), "saved": saved_bytes(setting, n)} for n in (1, 2))
    layers = setting.config["num_hidden_layers"]
    sums = {name: one[name] + (layers - 1) * (two[name] - one[name]) for name in one}
    inputs = layers * setting.tokens * setting.config["hidden_size"] * setting.dtype.itemsize
    return {**sums, "saved, checkpointed": one["saved"] + inputs}


def training(setting: Setting) -> dict[str, int]:
    """Return the bytes of each part of training; ``activations`` and what they shrink to with checkpointing."""
    sums = whole(setting)
    return {
        "frozen weights": sums["backbone"],
        "adapters": setting.tasks * sums["adapter"],
        "moments of AdamW": 2 * setting.tasks * sums["adapter"],
        "gradients of one adapter": sums["adapter"],
        "gradients of activations": _widest(setting),
        "activations": sums["saved"],
        "activations, checkpointed": sums["saved, checkpointed"],
    }


def testing(setting: Setting, merges: int = 6) -> dict[str, int]:
    """Return the bytes of each part of testing ``merges`` merges beside the pretrained and the finetuned model."""
    sums = whole(setting)
    # Merged adapters have the sum of the ranks, and the dtype of the backbone.
    branches = sums["adapter"] * setting.tasks * setting.dtype.itemsize // torch.float32.itemsize
    return {
        "frozen weights": sums["backbone"],
        "adapters": setting.tasks * sums["adapter"],
        "one forward pass": _widest(setting),
        f"{merges} merges as branches": merges * branches,
        f"{merges} merges as dense weights": merges * sums["changed"],
        f"{merges} whole models": merges * sums["backbone"],
        "on the host: one dense merge in float32": sums["changed"] * torch.float32.itemsize // setting.dtype.itemsize,
    }


def _widest(setting: Setting) -> int:
    """Return what a layer's own work takes at its widest: four tensors of the MLP's inner size."""
    return 4 * setting.tokens * setting.config["intermediate_size"] * setting.dtype.itemsize


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Yield a list that holds, afterwards, the highest number of bytes allocated above those at the start."""
    peak: list[int] = []
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.append(torch.cuda.max_memory_allocated() - before)
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield peak
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    peak.append(highest)


def measured_step(setting: Setting, device: str, checkpointing: bool) -> int:
    """Return the bytes that a step of AdamW needs above weights and adapters, at its peak."""
    torch.manual_seed(0)
    model = build(setting, device, attention="sdpa")
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    parameters = list(adapter_parameters(model, "task0").values())
    optimizer = torch.optim.AdamW(parameters)
    ids = torch.randint(1, setting.config["vocab_size"], (1, setting.tokens), device=device)
    with peak_memory(device) as peak:
        model.get_base_model()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
        optimizer.step()
    return peak[0]


def expected_step(setting: Setting, checkpointing: bool) -> int:
    """Return what `measured_step` should find, by the sum of shapes."""
    parts = training(setting)
    activations = parts["activations, checkpointed" if checkpointing else "activations"]
    # AdamW makes its moments after the backward pass, when activations have gone.
    return parts["gradients of one adapter"] + parts["gradients of activations"] + activations


def table(setting: Setting) -> str:
    """Return the sums as a table in Markdown, in GB of 10^9 bytes."""
    parts, tests = training(setting), testing(setting)
    fixed = sum(value for name, value in parts.items() if not name.startswith("activations"))
    rows = [(name, value) for name, value in parts.items()]
    rows += [
        ("**sum of training**", fixed + parts["activations"]),
        ("**sum of training, checkpointed**", fixed + parts["activations, checkpointed"]),
    ]
    held = sum(value for name, value in tests.items() if name in ("frozen weights", "adapters", "one forward pass"))
    rows += [(name, value) for name, value in tests.items() if name not in ("frozen weights", "adapters")]
    rows += [
        ("**sum of testing, branches**", held + tests["6 merges as branches"]),
        ("**sum of testing, dense weights**", held + tests["6 merges as dense weights"]),
    ]
    lines = [f"| {name} | {value / GB:.2f} |" for name, value in rows]
    return "\n".join(["| part | GB |", "| --- | ---: |", *lines])


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="hold the sum of a small Llama against a measured step")
    parser.add_argument("--tokens", type=int, default=2000, help="of a training batch (default: 2000)")
    parser.add_argument("--tasks", type=int, default=6, help="adapters (default: 6)")
    parser.add_argument("--rank", type=int, default=16, help="of an adapter (default: 16)")
    arguments = parser.parse_args()
    if not arguments.check:
        print(table(Setting(LLAMA_3_8B, arguments.tasks, arguments.rank, arguments.tokens)))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        setting = Setting(SMALL, 2, arguments.rank, 1024, dtype)
        for checkpointing in (False, True):
            expected, measured = expected_step(setting, checkpointing), measured_step(setting, device, checkpointing)
            print(
                f"{device}, {dtype}, checkpointing {checkpointing}: sum {expected / 1e6:.1f} MB, measured "
                f"{measured / 1e6:.1f} MB, ratio {measured / expected:.2f}"
            )


if __name__ == "__main__":
    main()
