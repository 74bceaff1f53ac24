"""Adding an adapter to the weights of a model."""

import weakref
from typing import Any

from torch import Tensor, nn

from mergers.errors import SheetbendError
from mergers.updates import Adapter

PEFT_PREFIX = "base_model.model."

# Models that already carry an adapter, with its name; forgotten together with the model.
_applied: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


def weight_updates(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """Return what ``adapter`` adds to each parameter of ``model``: parameter name to float32 tensor.

    The tensors lie as the parameters do (transposed for transformers' ``Conv1D``), on their devices.
    Modules are found by their exact name; in a PEFT model, the weight below ``base_layer`` is meant.

    Raises:
        SheetbendError: A module is missing in the model or its weight has another shape.
    """
    modules = {name.removeprefix(PEFT_PREFIX): (name, module) for name, module in model.named_modules()}
    missing = [name for name in adapter if name not in modules]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise SheetbendError(
            f"adapter {adapter.label}: the model {type(model).__name__} has no module {shown}; "
            "give the model the adapter was trained on"
        )
    updates = {}
    for name, update in adapter.items():
        full_name, module = modules[name]
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            full_name, module = f"{full_name}.base_layer", module.base_layer
        weight = getattr(module, "weight", None)
        delta = update.dense()
        if _stored_transposed(module, adapter.metadata):
            delta = delta.T
        if weight is None or weight.shape != delta.shape:
            have = "no weight" if weight is None else f"a weight {tuple(weight.shape)}"
            raise SheetbendError(
                f"adapter {adapter.label}: module {name} is {tuple(delta.shape)}, but in the model "
                f"{type(model).__name__} it has {have}; give the model the adapter was trained on"
            )
        updates[f"{full_name}.weight" if full_name else "weight"] = delta.to(weight.device)
    return updates


def _stored_transposed(module: nn.Module, metadata: dict[str, Any]) -> bool:
    """Return whether ``module.weight`` is (in, out), as PEFT decides: by known classes, then by config."""
    if isinstance(module, nn.Linear):
        return False
    return type(module).__name__ == "Conv1D" or bool(metadata.get("fan_in_fan_out", False))


def apply_adapter(adapter: Adapter, model: nn.Module) -> nn.Module:
    """Add ``adapter`` to the weights of ``model`` in place, in float32, and return the model.

    Raises:
        SheetbendError: An adapter was applied to this model before, or the modules do not fit; the model
            is then unchanged.
    """
    if model in _applied:
        raise SheetbendError(
            f"this {type(model).__name__} already carries adapter {_applied[model]!r}; "
            f"load the base model again before applying {adapter.name!r}"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, delta in weight_updates(adapter, model).items():
        weight = parameters[name].data
        weight.copy_(weight.float() + delta)
    _applied[model] = adapter.name
    return model
