"""What `sheetbend merge` says before the work and after it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from launch.commands.screen import duration, facts, show, size, span, table
from mergers.memory import available_memory, peak_memory

if TYPE_CHECKING:
    from mergers import Adapter, MergeSummary
    from mergers.preflight import Estimate

_MOST_NOTES = 8
NEGLIGIBLE = 1e-6  # relative error by truncation that is rounding


def preflight(screen: Console, plan: Any, adapters: "Sequence[Adapter]", estimate: "Estimate") -> None:
    """Print what is to be merged, how, and what that will take.

    Args:
        screen: Where to.
        plan: The run of the command: merger, rank, into, output, wanted, device, for_task.
        adapters: As they will be merged, under one set of names.
        estimate: Of memory and time.
    """
    show(screen, adapter_table(adapters))
    screen.print()
    for line in base_lines(adapters):
        screen.print(line)
    screen.print()
    if plan.into is not None:
        result = f"a full model like {plan.into}, {size(estimate.written)}"
    else:
        rank = f"rank {estimate.rank}, the best approximation" if plan.rank is not None else f"rank {estimate.rank}"
        exact = "" if plan.rank is not None else " at most, exact"
        dtype = str(plan.dtype_of(adapters)).removeprefix("torch.")
        result = f"a LoRA adapter of {rank}{exact}, {dtype}, {size(estimate.written)}"
    threads = torch.get_num_threads()
    where = f" on {plan.device}" if plan.device is not None else f" on {threads} thread{'s' * (threads > 1)}"
    time = "" if estimate.seconds is None else f", time {_about(estimate.seconds)}{where}"
    expected = f"peak memory {size(estimate.peak)}{time}"
    task = f", for {plan.for_task} alone" if plan.for_task else ""
    rows = [("merge", f"{plan.merger}{task}"), ("result", result)]
    if plan.output is not None:
        rows.append(("output", str(plan.output)))
    show(screen, facts(*rows, ("expected", expected)))
    free = available_memory()
    if free is not None and estimate.peak - estimate.resident > free:
        show(screen, f"note: this machine has {size(free)} of memory left, which may not be enough")
    for note in adapters[0].metadata.get("notes", [])[:_MOST_NOTES]:
        show(screen, f"note: {note}")
    screen.print()


def _about(seconds: float) -> str:
    """Return an estimated time, no more exact than it is."""
    if seconds < 1:
        return "under 1 s"
    digits = 10 ** max(0, math.floor(math.log10(seconds)) - 1) if seconds >= 10 else 1
    return f"about {duration(math.ceil(seconds / digits) * digits)}"


def adapter_table(adapters: "Sequence[Adapter]", more: "Mapping[str, Sequence[str]] | None" = None) -> Any:
    """Return a table of what is known of adapters without any work.

    Args:
        adapters: One a row.
        more: Further columns, by their titles.
    """
    columns = {
        "modules": [str(len(adapter)) for adapter in adapters],
        "rank": [span([update.rank for update in adapter.values()]) if len(adapter) else "" for adapter in adapters],
        "scale": [scales(adapter) for adapter in adapters],
        "dtype": [str(adapter.metadata.get("dtype") or "") for adapter in adapters],
        **(more or {}),
    }
    if any(adapter.heads for adapter in adapters):
        columns["head"] = ["yes" if adapter.heads else "" for adapter in adapters]
    result = table("adapter", *columns)
    for name, *cells in zip([adapter.name for adapter in adapters], *columns.values(), strict=True):
        result.add_row(name, *cells)
    return result


def base_lines(adapters: "Sequence[Adapter]") -> list[str]:
    """Return what the adapters call their base model: one line, or one each where they differ."""
    bases = {adapter.name: adapter.base_model or "not named" for adapter in adapters}
    if len(set(bases.values())) == 1:
        return [f"base model: {next(iter(bases.values()))}"]
    return [f"base model of {name}: {base}" for name, base in bases.items()]


def scales(adapter: "Adapter") -> str:
    """Return the scale of the factors: one number, or the smallest and largest."""
    found = sorted({update.scale for update in adapter.values() if hasattr(update, "scale")})
    if not found:
        return "dense"
    return f"{found[0]:.4g}" if found[0] == found[-1] else f"{found[0]:.3g} to {found[-1]:.3g}"


def summary(screen: Console, done: "MergeSummary", adapters: "Sequence[Adapter]", seconds: float) -> None:
    """Print what came of a merge, and how it is loaded."""
    if screen.quiet:
        return
    norms = ", ".join(f"{name} {norm:.4g}" for name, norm in _norms(adapters))
    rows = [("norm", f"{done.norm:.4g} merged" + (f"; {norms}" if norms else ""))]
    if done.ranks is not None:
        rows.insert(0, ("rank", f"{span(list(done.ranks))} in {len(done.modules)} modules"))
        rows.append(("error", _errors(done)))
    else:
        rows.insert(0, ("modules", f"{len(done.modules)} changed in a copy of the full model"))
        rows.append(("error", _rounding(done.rounding_error, "the model's dtype")))
    if done.heads:
        rows.append(("heads", f"in {done.path}/heads, each as it was, not merged: {', '.join(done.heads)}"))
    peak = peak_memory()
    rows.append(("took", duration(seconds) + (f", peak memory {size(peak)}" if peak else "")))
    rows.append(("written", done.path))
    rows.append(("load it", _how_to_load(done)))
    screen.print()
    show(screen, facts(*rows))
    for note in done.notes:
        if note not in adapters[0].metadata.get("notes", []):  # those were said before the work
            show(screen, f"note: {note}")


def _norms(adapters: "Sequence[Adapter]") -> list[tuple[str, float]]:
    """Return the Frobenius norm of each adapter that is in memory."""
    from mergers.updates import DenseUpdate, LowRankUpdate

    return [
        (adapter.name, math.sqrt(sum(max(update.squared_norm(), 0.0) for update in adapter.values())))
        for adapter in adapters
        if all(isinstance(update, LowRankUpdate | DenseUpdate) for update in adapter.values())
    ]


def _errors(done: "MergeSummary") -> str:
    """Return what truncation and rounding have cost, relative to the whole."""
    rounding = _rounding(done.rounding_error, done.settings["dtype"])
    if done.settings.get("rank") is None or done.truncation_error < NEGLIGIBLE:
        return f"none by truncation, {rounding}"
    worst = ", ".join(f"{module} {error:.1%}" for module, error in done.worst(1))
    return f"{done.truncation_error:.2%} by truncation to rank {done.settings['rank']} (largest: {worst}), {rounding}"


def _rounding(error: float, dtype: str) -> str:
    if not error:
        return "none by rounding"
    return f"{f'{error:.2%}' if error >= 5e-5 else 'under 0.01%'} by rounding to {dtype}"


def _how_to_load(done: "MergeSummary") -> str:
    """Return the call of the library that reads the result."""
    if done.ranks is None:
        return f'from_pretrained("{done.path}"), as the base model is loaded'
    return f'PeftModel.from_pretrained(base_model, "{done.path}")'
