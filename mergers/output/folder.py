"""From adapters to a merged folder on disk."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mergers.adapters.checks import align
from mergers.adapters.common import common_facts
from mergers.adapters.kinds import fits_lora, kind_of
from mergers.adapters.names import listed
from mergers.adapters.peft import CONFIG_FILE, WEIGHTS_FILE
from mergers.adapters.write import SAVED_DTYPES, peft_config, peft_tensors
from mergers.errors import SheetbendError
from mergers.files import atomic_folder, write_safetensors
from mergers.output.card import model_card
from mergers.output.key import merge_key
from mergers.output.model_folder import ModelPatch, copy_model, find_places
from mergers.output.summary import MERGE_FILE, MergeSummary, ModuleNumbers, adapter_facts, truncation_notes
from mergers.output.truncation import in_order, require_rank, rounding_error, truncate
from mergers.parallel import map_modules
from mergers.updates import Adapter, LowRankUpdate, Update

if TYPE_CHECKING:
    from mergers.merged import MergedAdapter
    from mergers.merger import Merger
    from mergers.run import Encode, Progress

HEADS_FOLDER = "heads"
_DENSE = (
    "{what} have no low rank; give rank=, to keep the best approximation of that rank, or base_model=, to add the "
    "result to a full model"
)
_OWN_FILES = {CONFIG_FILE, WEIGHTS_FILE, MERGE_FILE, HEADS_FOLDER, "README.md"}


def save_merged(
    merger: "Merger",
    adapters: Sequence[Adapter],
    path: str | Path,
    rank: int | None = None,
    base_model: str | Path | None = None,
    dtype: torch.dtype | None = None,
    same_base: bool = False,
    missing: Literal["error", "zero"] = "error",
    encode: "Encode | None" = None,
    progress: "Progress | None" = None,
    device: torch.device | str | None = None,
    for_task: str | None = None,
) -> MergeSummary:
    """Merge adapters and write the result, module by module: nothing dense is held but what is being worked on.

    Args:
        merger: How to merge.
        adapters: One a task.
        path: The folder to write: a PEFT adapter, or a full model. A merge that stands there is replaced once the
            new one is complete.
        rank: Keep the best approximation of this rank in each module; by default the result is exact.
        base_model: Folder of a full model in safetensors. The updates are added to a copy of it, shard by shard.
        dtype: Of the saved factors; by default the dtype that all adapters have, else float32. A full model keeps
            its own.
        same_base: Accept different names of the base model.
        missing: What to do about modules that some adapters lack; see `align`.
        encode: Takes the place of ``merger.space.encode``, such as a cached one.
        progress: Called as the work goes on.
        device: Where the work is done, such as ``"cuda"``.
        for_task: Name of the task whose own model is made, by a method that has one.

    Raises:
        SheetbendError: The result cannot be saved so; all that can be known is said before the work starts.
    """
    adapters = align(adapters, missing)
    path = Path(path)
    merger.check(adapters, same_base, for_task, device)
    facts = common_facts(adapters)
    require_savable(merger, adapters, rank, base_model, dtype)
    check_target(path, (base_model,) if base_model is not None else ())
    heads = heads_of(adapters, for_task)
    saved_dtype = "the model's own"
    notes = list(facts["metadata"].get("notes", []))
    options = {
        "same_base": same_base,
        "encode": encode,
        "progress": progress,
        "device": device,
        "for_task": for_task,
    }
    if base_model is not None:
        places = find_places(base_model, {m: u.shape for m, u in adapters[0].items()}, facts["metadata"])
    with atomic_folder(path) as folder:
        if base_model is not None:
            left_out = copy_model(Path(base_model), folder)
            if left_out:
                notes.append(f"not copied from the base model: {listed(left_out)}")
            patch = ModelPatch(folder, places, facts["metadata"])
            modules = dict(merger.stream(adapters, then=patch.add, **options))
        else:
            dtype = dtype or SAVED_DTYPES.get(facts["metadata"].get("dtype"), torch.float32)
            saved_dtype = _plain(dtype)
            then = partial(_factored, facts=facts, rank=rank, dtype=dtype, sources=adapters)
            modules = _write_factors(folder, merger.stream(adapters, then=then, **options), adapters[0], facts)
        summary = _summary(path, merger, for_task, rank, saved_dtype, adapters, modules, heads, notes)
        hashes = [facts["content_hash"] for facts in summary.adapters]
        key = key_for(merger, adapters, rank, base_model, dtype, for_task, hashes)
        _write_rest(folder, replace(summary, key=key), heads)
    return summary


def save_result(
    merged: "MergedAdapter", path: str | Path, rank: int | None = None, dtype: torch.dtype | None = None
) -> MergeSummary:
    """Write what `Merger.merge` returned as a PEFT folder; see `save_merged`, which needs less memory."""
    path = Path(path)
    _require_factors([merged], rank, dtype)
    if rank is None and not all(isinstance(update, LowRankUpdate) for update in merged.values()):
        merged.merger.require_low_rank()
        raise SheetbendError(_DENSE.format(what="the merged updates"))
    check_target(path)
    heads = heads_of(merged.sources, merged.for_task)
    facts = {"base_model": merged.base_model, "metadata": merged.metadata}
    dtype = dtype or SAVED_DTYPES.get(merged.metadata.get("dtype"), torch.float32)
    modules = list(merged)
    factored = map_modules(
        lambda module: _factored(module, merged[module], facts, rank, dtype, merged.sources), modules
    )
    with atomic_folder(path) as folder:
        numbers = _write_factors(folder, zip(modules, factored, strict=True), merged, facts)
        notes = list(merged.metadata.get("notes", []))
        about = (path, merged.merger, merged.for_task, rank, _plain(dtype), merged.sources)
        summary = _summary(*about, numbers, heads, notes)
        hashes = [facts["content_hash"] for facts in summary.adapters]
        key = key_for(merged.merger, merged.sources, rank, None, dtype, merged.for_task, hashes)
        _write_rest(folder, replace(summary, key=key), heads)
    return summary


def _factored(
    module: str,
    update: Update,
    facts: Mapping[str, Any],
    rank: int | None,
    dtype: torch.dtype,
    sources: Sequence[Adapter],
) -> tuple[dict[str, Tensor], ModuleNumbers]:
    """Return what PEFT saves for one merged module, and its numbers."""
    error, norm = 0.0, None
    if rank is not None:
        update, error, norm = truncate(update, rank, in_order(sources, module))
    norm = update.squared_norm() if norm is None else norm
    numbers = ModuleNumbers(max(update.rank, 1), norm, error, rounding_error(update, dtype))
    return peft_tensors(Adapter({module: update}, name="merged", **facts), module, dtype), numbers


def _write_factors(
    folder: Path,
    results: Iterable[tuple[str, tuple[dict[str, Tensor], ModuleNumbers]]],
    like: Adapter,
    facts: Mapping[str, Any],
) -> dict[str, ModuleNumbers]:
    """Write factors and PEFT's configuration; return the numbers of each module."""
    tensors: dict[str, Tensor] = {}
    modules: dict[str, ModuleNumbers] = {}
    for module, (saved, numbers) in results:
        tensors.update(saved)
        modules[module] = numbers
    ranks = {module: numbers.rank for module, numbers in modules.items()}
    config = peft_config(Adapter(like, name="merged", **facts), ranks)
    write_safetensors(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return modules


def _write_rest(folder: Path, summary: MergeSummary, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the tasks' heads, one file a task, and what says how the merge was made."""
    for task, tensors in heads.items():
        (folder / HEADS_FOLDER).mkdir(exist_ok=True)
        write_safetensors(tensors, folder / HEADS_FOLDER / f"{task}.safetensors")
    (folder / "README.md").write_text(model_card(summary), encoding="utf-8")
    (folder / MERGE_FILE).write_text(json.dumps(summary.as_dict(), indent=2) + "\n", encoding="utf-8")


def require_savable(
    merger: "Merger",
    adapters: Sequence[Adapter],
    rank: int | None = None,
    base_model: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Raise, before any work, if the merge cannot be saved in the way that is asked for.

    Raises:
        SheetbendError: A dense result without ``rank`` or ``base_model``, both of them, parameters that no LoRA
            adapter holds, or an impossible rank or dtype.
    """
    if base_model is not None:
        if rank is not None or dtype is not None:
            given = f"rank is {rank}" if rank is not None else f"dtype is {dtype}"
            raise SheetbendError(f"{given}, but a full model keeps its own shapes and dtype; leave it out")
        return
    _require_factors(adapters, rank, dtype)
    if rank is None:
        merger.require_low_rank()
        dense = [a.label for a in adapters if not all(isinstance(update, LowRankUpdate) for update in a.values())]
        if dense:
            raise SheetbendError(_DENSE.format(what=f"{listed(dense)}: differences of full checkpoints"))


def _require_factors(adapters: Sequence[Adapter], rank: int | None, dtype: torch.dtype | None) -> None:
    """Raise unless a LoRA adapter can hold updates of these modules, with this rank and dtype."""
    require_rank(rank)
    if dtype is not None and dtype not in SAVED_DTYPES.values():
        raise SheetbendError(f"dtype is {dtype}; give torch.float32, torch.float16 or torch.bfloat16")
    for adapter in adapters:
        for module, update in adapter.items():
            if len(update.shape) != 2 or not fits_lora(kind_of(adapter.metadata, module)):
                raise SheetbendError(
                    f"adapter {adapter.label}: {module} {update.shape} is the difference of a parameter that no LoRA "
                    "adapter holds; give base_model=, to add the result to a full model, or load the difference of "
                    "linear layers only (modules=[...], linear=True)"
                )


def check_target(path: Path, inputs: Sequence[str | Path] = ()) -> None:
    """Raise unless a merge may be written to ``path``: new, empty, or an earlier merge, and no input of this one.

    Raises:
        SheetbendError: Something else stands there.
    """
    try:
        if path.resolve().is_symlink():  # from Python 3.13 on, that is how a link to itself is told
            raise RuntimeError(f"Symlink loop from {str(path)!r}")
    except (RuntimeError, ValueError) as error:  # a link to itself, or a name that no file can have
        raise SheetbendError(f"{str(path)!r} is no place for a folder ({error}); give another folder") from None
    if path.exists() and not path.is_dir():
        raise SheetbendError(f"{path} is a file; give a new folder for the merge")
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        # An adapter that is no merge was trained, and would be lost too.
        others = [] if MERGE_FILE in names else sorted(names - _OWN_FILES) or sorted(names)
        if others:
            raise SheetbendError(f"{path} also holds {others[0]}, which would be lost; give a new or empty folder")
    for source in inputs:
        here, there = path.resolve(), Path(source).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise SheetbendError(f"{path} and the input {source} lie in each other; give another folder for the merge")


def _summary(
    path: Path,
    merger: "Merger",
    for_task: str | None,
    rank: int | None,
    dtype: str,
    sources: Sequence[Adapter],
    modules: dict[str, ModuleNumbers],
    heads: Mapping[str, Mapping[str, Tensor]],
    notes: list[str],
) -> MergeSummary:
    """Return what is written beside a merge and printed at its end."""
    return MergeSummary(
        path=str(path),
        merger=str(merger) if for_task is None else f"{merger}, for {for_task} alone",
        settings={"rank": rank, "coefficients": merger.coefficients, "dtype": dtype, "for_task": for_task},
        adapters=[adapter_facts(adapter) for adapter in sources],
        modules=modules,
        heads=sorted(heads),
        notes=notes + truncation_notes(modules),
    )


def key_for(
    merger: "Merger",
    adapters: Sequence[Adapter],
    rank: int | None,
    base_model: str | Path | None,
    dtype: torch.dtype | None,
    for_task: str | None,
    hashes: Sequence[str] | None = None,
) -> str:
    """Return the key that the result of `save_merged` carries with these arguments.

    ``adapters`` are aligned; ``hashes`` are those of their contents, where these are known.
    """
    hashes = hashes or [adapter.content_hash() for adapter in adapters]
    dtype = dtype or SAVED_DTYPES.get(common_facts(adapters)["metadata"].get("dtype"), torch.float32)
    return merge_key(merger, adapters, hashes, base_model, rank=rank, dtype=_plain(dtype), for_task=for_task)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def heads_of(adapters: Sequence[Adapter], for_task: str | None = None) -> dict[str, dict[str, Tensor]]:
    """Return each task's own head, by task name, or that of one task; they are kept, not merged."""
    heads = {a.name: a.heads for a in adapters if a.heads and for_task in (None, a.name)}
    for task in heads:
        if not re.fullmatch(r"[\w+-][\w.+-]*", task):
            raise SheetbendError(
                f"task {task!r} cannot name the file of its head; give it a name of letters and digits"
            )
    return heads
