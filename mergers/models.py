"""Adding an adapter to the weights of a model."""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mergers.adapters.kinds import Kind, as_it_lies, kind_of, lying_shape
from mergers.adapters.names import PEFT_PREFIX, listed, module_name, renamings
from mergers.errors import SheetbendError
from mergers.functional.linalg import all_finite
from mergers.updates import Adapter

__all__ = [
    "PEFT_PREFIX",
    "Place",
    "apply_adapter",
    "iter_weight_updates",
    "match_parameters",
    "weight_places",
    "weight_updates",
]

# How many rows of a weight are added to at a time.
_ROWS = 1024

# Models that already carry an adapter, with its name; forgotten together with the model.
_applied: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


class Place(NamedTuple):
    """Where an update belongs: the parameter's name in the model, and how the update lies in it."""

    parameter: str
    kind: Kind
    transposed: bool


def match_parameters(adapter: Adapter, model: nn.Module) -> dict[str, str]:
    """Return the name of the parameter in ``model`` that each module of ``adapter`` updates; no update is computed.

    Modules are found by their names, all of them with or without one prefix where the adapter was saved for a part
    of the model or for a whole of which it is a part. In a PEFT model, the weight below ``base_layer`` is meant.

    Raises:
        SheetbendError: A module is missing in the model, its weight has another shape, or the weight is tied to
            another module's.
    """
    return {module: place.parameter for module, place in weight_places(adapter, model).items()}


def iter_weight_updates(adapter: Adapter, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter that ``adapter`` updates, with the float32 tensor to add; one at a time is computed.

    The tensors lie as the parameters do (transposed for transformers' ``Conv1D`` and for embeddings, with their
    kernel for convolutions), on their devices. All names and shapes are checked before the first is yielded.

    Raises:
        SheetbendError: As for `match_parameters`.
    """
    places = weight_places(adapter, model)
    tensors = _tensors(model)
    for module, place in places.items():
        device = tensors[place.parameter].device
        # Kept in no name of this frame, so that the caller alone decides how long it lives.
        yield place.parameter, as_it_lies(adapter[module].dense(), place.kind, place.transposed).to(device)


def weight_updates(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """Return what ``adapter`` adds to each parameter of ``model``; see `iter_weight_updates`."""
    return dict(iter_weight_updates(adapter, model))


def apply_adapter(adapter: Adapter, model: nn.Module) -> nn.Module:
    """Add ``adapter`` to the weights of ``model`` in place, in float32, and return the model.

    One dense update is held at a time.

    Raises:
        SheetbendError: An adapter was applied to this model before, the modules do not fit, or a sum does not fit
            float16; the model is then unchanged.
    """
    if model in _applied:
        raise SheetbendError(
            f"this {type(model).__name__} already carries adapter {_applied[model]!r}; "
            f"load the base model again before applying {adapter.name!r}"
        )
    tensors = _tensors(model)
    if any(tensor.dtype == torch.float16 for tensor in tensors.values()):  # may overflow: look before anything changes
        for name, delta in iter_weight_updates(adapter, model):
            if not all_finite((tensors[name].data + delta).to(tensors[name].dtype)):
                raise SheetbendError(
                    f"adapter {adapter.label}: {name} and its update together do not fit {tensors[name].dtype}; load "
                    "the model in bfloat16 or float32, or give smaller coefficients"
                )
    for name, delta in iter_weight_updates(adapter, model):
        weight = torch.atleast_1d(tensors[name].data)
        for rows, added in zip(weight.split(_ROWS), torch.atleast_1d(delta).split(_ROWS), strict=True):
            rows.copy_(added + rows)  # in the wider of both dtypes
        del delta, added  # before the next one is computed
    _applied[model] = adapter.name
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by every name they have."""
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def weight_places(adapter: Adapter, model: nn.Module) -> dict[str, Place]:
    """Return the place of each module's update; no update is computed.

    Raises:
        SheetbendError: As for `match_parameters`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = _tensors(model)
    known = _known_names(modules, tensors)
    names = _found(adapter, model, known, tensors)
    places: dict[str, Place] = {}
    for name, update in adapter.items():
        parameter = known[names[name]]
        kind = kind_of(adapter.metadata, name)
        owner = modules[parameter.rpartition(".")[0]] if parameter else None
        transposed = _stored_transposed(owner, adapter.metadata)
        shape = lying_shape(update.shape, kind, transposed)
        weight = tensors[parameter] if parameter else None
        if weight is None or tuple(weight.shape) != shape:
            have = "no weight" if weight is None else f"a weight {tuple(weight.shape)}"
            raise SheetbendError(
                f"adapter {adapter.label}: module {name} is {shape}, but in the model "
                f"{type(model).__name__} it has {have}; give the model the adapter was trained on"
            )
        if not weight.is_floating_point() or weight.is_meta:
            raise SheetbendError(
                f"adapter {adapter.label}: the weight of {name} in the model {type(model).__name__} is "
                f"{weight.dtype} on {weight.device}; load the model unquantised and with its weights"
            )
        places[name] = Place(parameter, kind, transposed)
    _refuse_tied(adapter, places, modules, tensors)
    return places


def _known_names(modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> dict[str, str | None]:
    """Return the names an adapter may use, to the name of the parameter each stands for, or None.

    A module stands for its weight, in a PEFT model for the weight of its base layer; any other parameter goes by its
    own name.
    """
    known: dict[str, str | None] = {}
    for name, module in modules.items():
        inner = name
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            inner = f"{name}.base_layer" if name else "base_layer"
        weight = f"{inner}.weight" if inner else "weight"
        known[name.removeprefix(PEFT_PREFIX)] = weight if weight in tensors else None
    for parameter in tensors:
        if parameter.rpartition(".")[2] != "weight":
            known.setdefault(module_name(parameter).removeprefix(PEFT_PREFIX), parameter)
    for name in list(known):  # what stands below an adapted module, such as its bias, keeps its own name too
        if ".base_layer." in name:
            known.setdefault(name.replace(".base_layer.", "."), known[name])
    return known


def _found(
    adapter: Adapter, model: nn.Module, known: dict[str, str | None], tensors: dict[str, Tensor]
) -> dict[str, str]:
    """Return the name in the model of each of the adapter's modules."""
    ways = renamings(list(adapter), known)
    if not ways:
        missing = [name for name in adapter if name not in known]
        raise SheetbendError(
            f"adapter {adapter.label}: the model {type(model).__name__} has no module {listed(missing, 4)}; "
            "give the model the adapter was trained on"
        )
    # Two names of one shared module are no two places.
    targets = {tuple(id(tensors.get(known[way(name)] or "")) for name in adapter): way for way in reversed(ways)}
    if len(targets) > 1:
        name = next(iter(adapter))
        raise SheetbendError(
            f"adapter {adapter.label}: module {name} may be {listed([way(name) for way in targets.values()], 4)} in "
            f"the model {type(model).__name__}; give the part of the model the adapter was trained on"
        )
    way = next(iter(targets.values()))
    return {name: way(name) for name in adapter}


def _refuse_tied(
    adapter: Adapter, places: dict[str, Place], modules: dict[str, nn.Module], tensors: dict[str, Tensor]
) -> None:
    """Raise where an update would also change another module, or two updates the same parameter.

    A difference of checkpoints may change a tied weight, since that is what was trained.
    """
    owners: dict[int, dict[int, str]] = {}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        owners.setdefault(id(tensor), {}).setdefault(id(modules[module]), module)
    taken: dict[int, str] = {}
    for name, place in places.items():
        tensor, owner = tensors[place.parameter], modules[place.parameter.rpartition(".")[0]]
        others = [module for key, module in owners[id(tensor)].items() if key != id(owner)]
        other = taken.setdefault(id(tensor), name)
        if other == name and others and place.kind in ("linear", "embedding"):
            other = others[0]
        if other != name:
            raise SheetbendError(
                f"adapter {adapter.label}: the weight of {name} is tied to {other}, so that adding to one changes "
                "both; load the model with untied weights (tie_word_embeddings=False)"
            )


def _stored_transposed(module: nn.Module | None, metadata: dict[str, Any]) -> bool:
    """Return whether ``module.weight`` is (in, out), as PEFT decides: by known classes, then by config."""
    if isinstance(module, nn.Linear):
        return False
    return type(module).__name__ == "Conv1D" or bool(metadata.get("fan_in_fan_out", False))
