"""Whether adapters fit together: one base model, one set of names."""

from collections.abc import Sequence
from typing import Literal

import torch

from mergers.adapters.kinds import kind_of, same_kind
from mergers.adapters.names import listed, renamings
from mergers.errors import SheetbendError
from mergers.functional.linalg import all_finite
from mergers.updates import Adapter, DenseUpdate, LowRankUpdate, Update


def check_same_base(adapters: Sequence[Adapter], same_base: bool = False) -> None:
    """Raise unless all adapters fit one base model: its name, their modules, and the shapes and kinds of these.

    Args:
        adapters: One a task, with distinct names.
        same_base: Accept base names that differ; the shapes must still agree. A missing name is always
            accepted.

    Raises:
        SheetbendError: They do not fit; the message names the first difference.
    """
    if not adapters:
        raise SheetbendError("no adapters to merge; give at least one")
    for index, adapter in enumerate(adapters):
        if not adapter:
            raise SheetbendError(f"adapter {adapter.label}: it has no modules; train it on at least one")
        if not (adapter.name and adapter.name.isprintable()):
            raise SheetbendError(f"adapter {adapter.label!r}: {adapter.name!r} cannot name a task; give another name")
        if adapter.name in [other.name for other in adapters[:index]]:
            raise SheetbendError(f"two adapters are named {adapter.name!r}; give each its own name")
        _check_finite(adapter)
    first = adapters[0]
    named = next((adapter for adapter in adapters if adapter.base_model), None)
    for other in adapters[1:]:
        if not same_base and named and other.base_model and other.base_model != named.base_model:
            raise SheetbendError(
                f"adapter {other.label}: its base model is {other.base_model!r}, but {named.label} has "
                f"{named.base_model!r}; both must come from one base model "
                "(same_base=True accepts two names of one model)"
            )
        for holder, lacker in ((first, other), (other, first)):
            missing = [module for module in holder if module not in lacker]
            if missing:
                raise SheetbendError(
                    f"adapter {lacker.label}: has no module {listed(missing)}, but {holder.label} has; "
                    "all must adapt the same modules (missing='zero' counts those that lack as zero)"
                )
        _check_modules(first, other)


def _check_finite(adapter: Adapter) -> None:
    """Raise if an update in memory holds NaN or infinity; one on disk is checked when it is read."""
    for module, update in adapter.items():
        if isinstance(update, LowRankUpdate | DenseUpdate) and not all(
            all_finite(tensor) for tensor in update.tensors().values()
        ):
            raise SheetbendError(
                f"adapter {adapter.label}: module {module} holds NaN or infinity; train it again, with a lower "
                "learning rate if it has diverged"
            )


def _check_modules(first: Adapter, other: Adapter) -> None:
    """Raise unless both adapters, which have the same modules, agree in shapes and kinds."""
    for module, update in first.items():
        if other[module].shape != update.shape:
            raise SheetbendError(
                f"adapter {other.label}: module {module} is {other[module].shape}, but {first.label} has "
                f"{update.shape}; both must come from one base model"
            )
        kind, other_kind = kind_of(first.metadata, module), kind_of(other.metadata, module)
        if not same_kind(kind, other_kind):
            raise SheetbendError(
                f"adapter {other.label}: module {module} is of kind {other_kind}, but in {first.label} it is of kind "
                f"{kind}; both must come from one base model"
            )
    if first.metadata.get("fan_in_fan_out", False) != other.metadata.get("fan_in_fan_out", False):
        raise SheetbendError(
            f"adapter {other.label}: fan_in_fan_out differs from {first.label}; both must come from one base model"
        )


def align(adapters: Sequence[Adapter], missing: Literal["error", "zero"] = "error") -> list[Adapter]:
    """Return the adapters under one set of module names; to be followed by `check_same_base`.

    Adapters saved for a part of a model lack the names above it (``encoder.layers.0`` for
    ``vision_model.encoder.layers.0``). Where one prefix explains all names, the longest names are taken for all.

    Args:
        adapters: One a task.
        missing: ``"error"`` leaves modules that some adapters lack for `check_same_base` to refuse; ``"zero"`` counts
            them as updates of rank 0.

    Returns:
        The adapters, new where they were changed. What was done, and whose base model is not known, stands in
        ``metadata["notes"]``, the same list in all.

    Raises:
        SheetbendError: More than one prefix explains the names.
    """
    if missing not in ("error", "zero"):
        raise SheetbendError(f"missing is {missing!r}; give 'error' or 'zero'")
    adapters = list(adapters)
    prefixes = _prefixes(adapters)
    notes = [
        f"{adapter.name}: module names begin with {prefix!r} here"
        for adapter, prefix in zip(adapters, prefixes, strict=True)
        if prefix
    ]
    renamed = [
        _changed(adapter, {prefix + module: update for module, update in adapter.items()}, prefix)
        if prefix
        else adapter
        for adapter, prefix in zip(adapters, prefixes, strict=True)
    ]
    renamed = _of_one_kind(renamed)
    if missing == "zero":
        renamed, filled = _filled(renamed)
        notes += filled
    if len(adapters) > 1:
        notes += [f"{adapter.name}: names no base model" for adapter in adapters if not adapter.base_model]
    if not notes:
        return renamed
    noted = []
    for adapter in renamed:
        known = adapter.metadata.get("notes", [])
        metadata = {**adapter.metadata, "notes": [*known, *(note for note in notes if note not in known)]}
        noted.append(Adapter(dict(adapter), adapter.name, adapter.base_model, metadata, adapter.heads))
    return noted


def _changed(adapter: Adapter, updates: dict[str, Update], prefix: str = "") -> Adapter:
    """Return the adapter with other updates; what selected the old ones no longer holds."""
    metadata = {**adapter.metadata, "selection": {}}
    if "kinds" in metadata:
        metadata["kinds"] = {prefix + module: kind for module, kind in metadata["kinds"].items()}
    return Adapter(updates, adapter.name, adapter.base_model, metadata, adapter.heads)


def _prefixes(adapters: Sequence[Adapter]) -> list[str]:
    """Return what to put before each adapter's names so that all speak of the same modules."""
    pairs = [_prefix_pair(adapters[0], adapter) for adapter in adapters]
    longest = max((of_first for of_first, _ in pairs), key=len, default="")
    if not all(longest.endswith(of_first) for of_first, _ in pairs):
        return [""] * len(adapters)
    return [longest.removesuffix(of_first) + of_other for of_first, of_other in pairs]


def _prefix_pair(first: Adapter, other: Adapter) -> tuple[str, str]:
    """Return the prefixes of both adapters under which the modules of one are among the other's."""
    if any(module in first for module in other):
        return "", ""
    found = {(way.strip, way.add) for way in renamings(list(other), first)}
    found |= {(way.add, way.strip) for way in renamings(list(first), other)}
    if len(found) > 1:
        ways = listed(sorted(repr(of_first or of_other) for of_first, of_other in found))
        raise SheetbendError(
            f"adapter {other.label}: its module names fit those of {first.label} with more than one prefix ({ways}); "
            "rename them in one of both"
        )
    return next(iter(found), ("", ""))


def _filled(adapters: Sequence[Adapter]) -> tuple[list[Adapter], list[str]]:
    """Return adapters that all have all modules, those they lacked as zeros, and notes that say which."""
    donors: dict[str, Adapter] = {}
    for adapter in adapters:
        for module in adapter:
            donors.setdefault(module, adapter)
    if all(len(adapter) == len(donors) for adapter in adapters):
        return list(adapters), []
    kinds = {module: kind_of(donor.metadata, module) for module, donor in donors.items()}
    filled, notes = [], []
    for adapter in adapters:
        lacking = [module for module in donors if module not in adapter]
        updates = {
            module: adapter[module] if module in adapter else _zero_like(donor[module])
            for module, donor in donors.items()
        }
        full = _changed(adapter, updates)
        full.metadata["kinds"] = {**kinds, **{module: kind_of(adapter.metadata, module) for module in adapter}}
        filled.append(full)
        if lacking:
            notes.append(f"{adapter.name}: has no {listed(lacking)}; counted as zero")
    return filled, notes


def _of_one_kind(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters with the kind in all that a LoRA knows of its modules and a difference does not."""
    kinds = [adapter.metadata.get("kinds") or {} for adapter in adapters]
    unknown = {module for known in kinds for module, kind in known.items() if kind == "parameter"}
    learnt = {
        module: kind_of(adapter.metadata, module)
        for adapter in adapters
        for module in adapter
        if module in unknown and kind_of(adapter.metadata, module) in ("linear", "in_proj")
    }
    if not learnt:
        return list(adapters)
    taught = []
    for adapter in adapters:
        of_this = {module: kind for module, kind in learnt.items() if module in adapter}
        metadata = {**adapter.metadata, "kinds": {**(adapter.metadata.get("kinds") or {}), **of_this}}
        taught.append(Adapter(dict(adapter), adapter.name, adapter.base_model, metadata, adapter.heads))
    return taught


def _zero_like(update: Update) -> Update:
    """Return an update of the same shape that adds nothing: of rank 0, or a vector of zeros."""
    if len(update.shape) != 2:
        return DenseUpdate(torch.zeros(update.shape))
    like = update.A if isinstance(update, LowRankUpdate) else torch.empty(0)
    rows, columns = update.shape
    return LowRankUpdate(A=like.new_zeros(0, columns), B=like.new_zeros(rows, 0))
