"""Named sets of weights that the evaluation loop runs every batch through."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mergers import Adapter, LowRankUpdate
from mergers.models import iter_weight_updates, match_parameters

PRETRAINED = "pretrained"
FINETUNED = "finetuned"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Variant:
    """One set of weights under test.

    Attributes:
        description: one line for the report: what the weights are and with which settings they were made.
        weights: tensors that replace those of the base model, by parameter name; empty: the base itself; None: they
            have been let go, and only the description is left.
        branches: updates that are added as a branch beside a layer instead, by the layer's name: A (r, in), B (out, r).
        own_adapter: each batch runs through the adapter of its own task, and nothing is replaced.
        ensemble: each batch runs through the adapters of all tasks; the largest logit of a joint class counts.
        caveats: what a reader of its results should know, a sentence each.
        tasks: the tasks that it is for: batches of others pass it by, and in joint label spaces only labels of these
            compete; None: all.
    """

    description: str
    weights: dict[str, Tensor] | None = field(default_factory=dict, repr=False)
    branches: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    own_adapter: bool = False
    ensemble: bool = False
    caveats: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None

    def released(self) -> "Variant":
        """Return the variant without its tensors."""
        return replace(self, weights=None, branches={})


def pretrained() -> Variant:
    """Return the base model as it came."""
    return Variant("the base model, without adapters")


def finetuned() -> Variant:
    """Return the adapters before merging, each on its own task."""
    return Variant("each task through its own adapter", own_adapter=True)


def ensemble() -> Variant:
    """Return all adapters together, in joint label spaces."""
    return Variant("every adapter on every example; the largest logit of each joint label counts", ensemble=True)


def merged_variant(
    description: str, merged: Adapter, model: nn.Module, branches: bool = False, prefix: str = ""
) -> Variant:
    """Return ``model`` plus the updates of ``merged``.

    Args:
        description: one line for the report.
        merged: the updates; one is made dense at a time.
        model: the base model, with or without adapters of its own, which stay out of it.
        branches: keep low-rank updates of linear layers as branches in the dtype of the layer: r (in + out) numbers
            instead of in * out. Where they would not be fewer, and for all other updates, the sum is made in float32
            and rounded to the parameter's dtype.
        prefix: what stands before the model's names in those of the variant.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    places = match_parameters(merged, model)
    beside: dict[str, tuple[Tensor, Tensor]] = {}
    for name, update in merged.items() if branches else ():
        layer = places[name].removesuffix(".weight").removesuffix(".base_layer")
        owner = modules.get(places[name].removesuffix(".weight"))
        # The out_proj of torch's MultiheadAttention is a linear layer that is never called.
        called = isinstance(owner, nn.Linear) and not isinstance(owner, NonDynamicallyQuantizableLinear)
        if not called or not isinstance(update, LowRankUpdate):
            continue
        if update.rank * sum(update.shape) < update.shape[0] * update.shape[1]:
            weight = owner.weight
            factors = (update.A, update.B.float() * update.scale)
            beside[f"{prefix}{layer}"] = tuple(factor.to(weight.device, weight.dtype) for factor in factors)
            places.pop(name)
    dense = Adapter({name: merged[name] for name in places}, name=merged.name, metadata=merged.metadata)
    weights = {}
    for name, delta in iter_weight_updates(dense, model) if dense else ():
        base = parameters[name].detach()
        weights[f"{prefix}{name}"] = (base.float() + delta).to(base.dtype)
    return Variant(description, weights, beside)


class Places:
    """Where each parameter of a model stands; a look through all modules, which many calls of `replaced` may share.

    Args:
        model: must keep its modules and parameters for as long as this is used.
    """

    def __init__(self, model: nn.Module):
        holders: dict[int, list[tuple[dict[str, Any], str, nn.Parameter]]] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                holders.setdefault(id(parameter), []).append((module._parameters, name, parameter))
        named = model.named_parameters(remove_duplicate=False)
        self._holders = {name: holders[id(parameter)] for name, parameter in named}

    def of(self, name: str) -> list[tuple[dict[str, Any], str, nn.Parameter]]:
        """Return who holds the parameter ``name``: a module's parameters, its name there, and itself."""
        return self._holders[name]


@contextlib.contextmanager
def replaced(model: nn.Module, variant: Variant, places: Places | None = None) -> Iterator[None]:
    """Give ``model`` the weights and branches of ``variant``, and take them away again.

    A parameter that several layers share is replaced in all of them.

    Args:
        model: holds the parameters and layers that ``variant`` names.
        variant: what to put in their place; the tensors are used, not copied.
        places: of ``model``, for who has looked already.

    Raises:
        RuntimeError: the variant's weights have been let go.
    """
    if variant.weights is None:
        raise RuntimeError(f"the weights of this variant have been let go: {variant.description}")
    if variant.weights and places is None:
        places = Places(model)
    held = {name: places.of(name) for name in variant.weights}
    hooks = []
    try:
        # Not through .data: in inference mode tensors made elsewhere could not take its place.
        for name, value in variant.weights.items():
            for owner, key, _ in held[name]:
                owner[key] = value
        for name, (a, b) in variant.branches.items():
            hooks.append(model.get_submodule(name).register_forward_hook(_branch(a, b)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for owner, key, parameter in (holder for holders in held.values() for holder in holders):
            owner[key] = parameter


def _branch(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + linear(linear(inputs[0].to(a.dtype), a), b).to(output.dtype)

    return add
