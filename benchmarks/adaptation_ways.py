"""One step of AdaRank in both ways, on the same random directions, model and batches.

What only whole steps need is imported where they need it, since it takes longer than most of what is measured.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from benchmarks.adaptation_cases import Case, Setting
from benchmarks.adaptation_parts import (
    first_logits,
    lora_updates,
    parts,
    random_weights,
    written_out,
    written_out_origin,
)
from benchmarks.measure import give_back, peak_memory, reset_peak_memory
from mergers.adaptive import Decomposition
from mergers.adaptive.adarank import FIRST_LOGIT
from mergers.parallel import map_modules
from mergers.seeding import derive_generator
from mergers.updates import DenseUpdate

CLASSES = 10
TEMPERATURE = 10.0
FIRST_COEFFICIENT = {"task_arithmetic": 0.3, "cart": 2.3}


def build_model(setting: Setting) -> nn.Module:
    """Return a CLIP vision tower with random weights that get no gradient."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**setting.config)).eval().requires_grad_(False)


# The two ways. Each merges all weights under autograd, and takes entropies of a model with merged weights back.


class Ours:
    """As `TestTimeAdaptation` does: one masked sum a weight, the model's backward pass task by task.

    Args:
        case: What is merged.
        setting: How large it is.
        base: Weights by name; the origin, or that less a mean.
    """

    def __init__(self, case: Case, setting: Setting, base: dict[str, Tensor]):
        self.parts = dict(parts(case, setting))
        self.origins = {name: part.origin(base[name].detach()) for name, part in self.parts.items()}
        self.sizes = [sum(part.counts) for part in self.parts.values()]
        self.counts = self.sizes
        self.places = torch.arange(sum(self.sizes))
        self.first_logits = torch.cat([first_logits(case, part) for part in self.parts.values()])

    def merge(self, logits: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the merged weights, differentiable in logits (K,) and coefficients (M, T)."""
        pieces = zip(self.parts.items(), logits.split(self.sizes), coefficients.unbind(), strict=True)
        return {
            name: part.weight(self.origins[name], own, weights, TEMPERATURE) for (name, part), own, weights in pieces
        }

    def backward(self, model: nn.Module, weights: dict[str, Tensor], batches: Tensor, heads: Tensor) -> "Passes":
        """Take the summed entropy back into masks and coefficients."""
        from lightning_modules.variants import Variant, replaced

        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        total = torch.zeros(())
        with replaced(model, Variant("", leaves)):
            for images, head in zip(batches, heads, strict=True):
                loss = entropy(model(pixel_values=images), head)
                loss.backward()
                total += loss.detach()
        turned = time.perf_counter()
        torch.autograd.backward(list(weights.values()), [leaf.grad for leaf in leaves.values()])
        return Passes(total.item(), turned)


class Published:
    """As the published code does: U, s, V of every task; each task's product; one backward pass over all tasks.

    What masks choose from is what ours has, written out in the shape of the weight; where these are less than
    min(out, in) directions, as many of singular value 0 follow as the SVD of a dense difference has.

    Args:
        case: What is merged.
        setting: How large it is.
        base: Weights by name, which become the origin: the published code holds no other copy.
    """

    def __init__(self, case: Case, setting: Setting, base: dict[str, Tensor]):
        self.svd: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.shape = (setting.tasks, -1)
        logits, places, self.sizes, self.counts = [], [], [], []
        for name, part in parts(case, setting):
            self.svd[name] = [written_out(part, task) for task in range(setting.tasks)]
            base[name].data = written_out_origin(part, base[name].detach())
            each, start = len(self.svd[name][0][1]), sum(self.sizes)
            places += [start + task * each + torch.arange(count) for task, count in enumerate(part.counts)]
            logits.append(first_logits(case, part))
            self.sizes.append(setting.tasks * each)
            self.counts.append(sum(part.counts))
        self.origins = {name: base[name].detach() for name in self.svd}
        self.places = torch.cat(places)
        self.first_logits = torch.full((sum(self.sizes),), -FIRST_LOGIT)
        self.first_logits[self.places] = torch.cat(logits)

    def merge(self, logits: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
        """Return the merged weights, differentiable in logits (K,) and coefficients (M, T)."""
        weights = {}
        pieces = zip(self.svd.items(), logits.split(self.sizes), coefficients.unbind(), strict=True)
        for (name, svd), own, factors in pieces:
            weight = self.origins[name].clone()
            for (U, s, Vh), task_logits, factor in zip(svd, own.view(self.shape), factors, strict=True):
                p = torch.sigmoid(task_logits / TEMPERATURE)
                masked = p * s + (((p > 0.5).float() - p) * s).detach()
                weight.add_(factor * ((U * masked) @ Vh))
            weights[name] = weight
        return weights

    def backward(self, model: nn.Module, weights: dict[str, Tensor], batches: Tensor, heads: Tensor) -> "Passes":
        """Take the summed entropy back into masks and coefficients."""
        turned: list[float] = []  # autograd has left the model when it asks the first weight for what made it
        for weight in weights.values():
            weight.register_hook(lambda grad: turned.append(time.perf_counter()))
        outputs = [functional_call(model, weights, (), {"pixel_values": images}) for images in batches]
        total = sum(entropy(output, head) for output, head in zip(outputs, heads, strict=True))
        total.backward()
        return Passes(total.item(), turned[0])


WAYS = {"ours": Ours, "published": Published}


@dataclass
class Passes:
    """What came of a pass over all tasks.

    Attributes:
        loss: Summed over tasks.
        turned: When the model's backward pass had ended and the merge's began.
    """

    loss: float
    turned: float


def entropy(output: Any, head: Tensor) -> Tensor:
    """Return the mean entropy over the classes of ``head``, (classes, d)."""
    log_p = (100 * normalize(output.image_embeds, dim=-1) @ head.T).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


# What is measured, in a process of its own.


def measure(case: Case, way: str, what: str, setting: Setting, steps: int, result: Path) -> dict[str, Any]:
    """Do ``steps`` steps after one to warm up; return the seconds of each, and megabytes.

    Args:
        case: What is merged.
        way: ``ours`` or ``published``.
        what: ``step``: whole optimiser steps. ``merging``: merges, with given gradients taken back.
        setting: How large it is.
        steps: How many.
        result: File for `largest_differences`: the first step's gradients, or a merge under random masks and its own.
    """
    whole = what == "step"
    if whole:
        import lightning_modules  # noqa: F401  what it takes is not counted
    _warm_up(case, way)
    reset_peak_memory()
    before = peak_memory()
    model = build_model(setting) if whole else None
    base = dict(model.named_parameters()) if whole else random_weights(case, setting)
    reset_peak_memory()
    with_base = peak_memory()
    made = WAYS[way](case, setting, base)
    logits = made.first_logits.clone().requires_grad_()
    coefficients = torch.full((len(made.sizes), setting.tasks), FIRST_COEFFICIENT[case.start]).requires_grad_()
    run = _WholeStep(made, model, setting, logits, coefficients) if whole else _MergingAlone(made)
    give_back()  # what making the directions has left
    reset_peak_memory()
    seconds, tensors = [], {}
    for index in range(steps + 1):
        logits.grad = coefficients.grad = None
        seconds.append(run(logits, coefficients))
        if index == 0:
            tensors = gradients(made, logits, coefficients)
    peak = peak_memory()
    if not whole:
        tensors = under_random_masks(made, run, setting)
    save_file(tensors, result)
    return {
        "seconds": seconds[1:],
        "directions": len(made.first_logits),
        "imports_mb": before,
        "base_mb": with_base - before,
        "peak_mb": peak,
    }


def _warm_up(case: Case, way: str) -> None:
    """Merge something small, and multiply something large, so that what libraries take at first use is not counted."""
    tiny = Setting("tiny", tasks=2)
    made = WAYS[way](case, tiny, random_weights(case, tiny))
    coefficients = torch.ones(len(made.sizes), tiny.tasks).requires_grad_()
    _MergingAlone(made)(made.first_logits.clone().requires_grad_(), coefficients)
    left, right = torch.ones(3072, 1024).requires_grad_(), torch.ones(1024, 768)
    torch.linalg.svd(left[:256, :256].detach())
    (left @ right).sum().backward()
    del left, right
    give_back()


class _MergingAlone:
    """Merges all weights, and takes a random gradient of each back.

    Args:
        made: In whose way.
    """

    def __init__(self, made: Ours | Published):
        self.made = made
        self.gradients = [
            torch.randn(origin.shape, generator=derive_generator(name)) for name, origin in made.origins.items()
        ]

    def __call__(self, logits: Tensor, coefficients: Tensor) -> dict[str, float]:
        start = time.perf_counter()
        weights = self.made.merge(logits, coefficients)
        merged = time.perf_counter()
        torch.autograd.backward(list(weights.values()), self.gradients)
        end = time.perf_counter()
        return {"merging": end - start, "forward": merged - start, "backward": end - merged}


class _WholeStep:
    """An optimiser step on a random batch of each task.

    Args:
        made: In whose way.
        model: The tower.
        setting: How large everything is.
        learned: What Adam changes.
    """

    def __init__(self, made: Ours | Published, model: nn.Module, setting: Setting, *learned: Tensor):
        self.made, self.model = made, model
        self.optimizer = torch.optim.Adam(learned, lr=1e-3)
        generator, own = derive_generator("batches"), setting.config
        shape = (setting.tasks, setting.batch, 3, own["image_size"], own["image_size"])
        self.batches = torch.randn(shape, generator=generator)
        self.heads = normalize(torch.randn(setting.tasks, CLASSES, own["projection_dim"], generator=generator), dim=-1)

    def __call__(self, logits: Tensor, coefficients: Tensor) -> dict[str, float]:
        start = time.perf_counter()
        weights = self.made.merge(logits, coefficients)
        merged = time.perf_counter()
        passes = self.made.backward(self.model, weights, self.batches, self.heads)
        done = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        merging = merged - start + done - passes.turned
        return {"step": end - start, "merging": merging, "model": passes.turned - merged, "loss": passes.loss}


def gradients(made: Ours | Published, logits: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
    """Return the gradients of the directions that both ways have, and of the coefficients, by weight."""
    of_logits = logits.grad[made.places].split(made.counts)
    found = {f"masks {name}": grad.clone() for name, grad in zip(made.origins, of_logits, strict=True)}
    return found | {
        f"coefficients {name}": grad.clone() for name, grad in zip(made.origins, coefficients.grad, strict=True)
    }


def under_random_masks(made: Ours | Published, run: _MergingAlone, setting: Setting) -> dict[str, Tensor]:
    """Return the merged weights and gradients under masks and coefficients drawn at random."""
    generator = derive_generator("masks")
    logits = made.first_logits.clone()
    logits[made.places] = torch.randn(len(made.places), generator=generator)
    coefficients = 0.5 + torch.rand(len(made.origins), setting.tasks, generator=generator)
    logits.requires_grad_(), coefficients.requires_grad_()
    run(logits, coefficients)
    with torch.no_grad():
        weights = made.merge(logits, coefficients)
    return gradients(made, logits, coefficients) | {f"weights {name}": weight for name, weight in weights.items()}


def largest_differences(ours: Path, theirs: Path) -> dict[str, float]:
    """Return, for weights and each kind of gradient, the largest difference by the largest entry of its tensor."""
    mine, other = load_file(ours), load_file(theirs)
    if set(mine) != set(other):
        raise ValueError(f"{sorted(set(mine) ^ set(other))[0]} has one way only")
    worst: dict[str, float] = {}
    for name, tensor in other.items():
        kind = name.partition(" ")[0]
        worst[kind] = max(worst.get(kind, 0.0), float((mine[name] - tensor).abs().max() / tensor.abs().max()))
    return worst


def prepare(case: Case, way: str, setting: Setting) -> dict[str, float]:
    """Return the seconds in which one layer's updates are decomposed, and by how many layers that is to be multiplied.

    Ours: as `AdaRank.prepare` does. Published: the SVD of each task's dense update, or of what it has beside the mean.
    """
    layers = setting.config["num_hidden_layers"]
    one_layer = replace(setting, layers=1)
    updates = {}
    for name, shape in one_layer.shapes(case).items():
        if case.rank is None:
            tasks = [torch.randn(shape, generator=derive_generator(name, task)) for task in range(setting.tasks)]
            updates[name] = [DenseUpdate(0.01 * task) for task in tasks]
        else:
            updates[name] = lora_updates(case, setting, name, shape)
    start = time.perf_counter()
    if way == "ours":
        for _ in map_modules(Decomposition(case.start, case.space).encode, list(updates.values())):
            pass
    else:
        for of_weight in updates.values():
            dense = [update.dense() for update in of_weight]
            mean = sum(dense) / len(dense) if case.start == "cart" else 0
            for delta in dense:
                torch.linalg.svd(delta - mean, full_matrices=False)
    return {"seconds": time.perf_counter() - start, "layers": layers}


def machine_rates() -> dict[str, float]:
    """Return what the machine reaches: FLOP/s in a product of (3072, 1024) and (1024, 768), bytes/s in a copy."""
    left, right, large = torch.randn(3072, 1024), torch.randn(1024, 768), torch.ones(1 << 26)
    target = torch.empty_like(large)

    def fastest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    flops, moved = 2 * 3072 * 1024 * 768, 2 * large.numel() * large.element_size()
    return {"flops": flops / fastest(lambda: left @ right), "bytes": moved / fastest(lambda: target.copy_(large))}
