"""What a learned merge leaves on disk: its weights, its masks and coefficients, and pictures of both."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from callbacks.adaptation_plots import COEFFICIENTS_PICTURE, KEPT_PICTURE, coefficients, kept_ranks, pixels
from callbacks.plots import png
from callbacks.results import csv_text
from lightning_modules.full_checkpoints import write_model
from lightning_modules.test_time_adaptation import TestTimeAdaptation
from mergers import LowRankUpdate
from mergers.adapters.kinds import fits_lora, kind_of
from mergers.adaptive.kept import KeptRanks, LearnedCoefficients
from mergers.adaptive.parts import OriginPart
from mergers.files import atomic_folder, atomic_write, write_safetensors
from mergers.output.folder import HEADS_FOLDER
from mergers.output.summary import MERGE_FILE

MERGED_FOLDER = "merged"
LEARNED_FILE = "learned.safetensors"
KEPT_FILE = "kept_rank.csv"
COEFFICIENTS_FILE = "coefficients.csv"
ENTROPY_FILE = "entropy.csv"


class AdaptationCheckpoint(Callback):
    """Write what `TestTimeAdaptation` has learned when it ends, and show it on the way.

    The run folder gets

    - ``merged/``: a PEFT adapter, or a full model where updates are of full rank;
    - ``learned.safetensors``: ``coefficients``, a row a module and a column a task, and ``logits``, the mask logits in
      one vector: module after module, in it task after task, in it by falling singular value. ``names`` in its metadata
      is JSON with ``modules``, ``tasks``, and ``directions``, the number of logits of each task by module;
    - where masks are learned, ``kept_rank.csv`` and ``plots/kept_rank.png``: how many directions of each task are on in
      each module;
    - where coefficients are learned, ``coefficients.csv`` and ``plots/coefficients.png``;
    - after each window of steps, ``entropy.csv``: the mean entropy of every window.

    TensorBoard gets after each window both pictures (``kept_rank``, ``coefficients``) and the scalars
    ``entropy_window``, ``kept_share``, ``kept_share/<task>`` and ``coefficient/<task>``, the mean over modules.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TestTimeAdaptation) -> None:
        """Note the window that ends; its entropy is still in the module, whose own hook comes after this one."""
        if math.isnan(pl_module.entropy):  # Lightning goes on by closing an epoch without steps
            return
        own = torch.tensor(pl_module.entropy, device=pl_module.device)
        entropy = float(trainer.strategy.reduce(own, reduce_op="mean"))
        if not _writes(trainer):
            return
        _write_entropies(trainer, pl_module, [*pl_module.entropies, entropy])
        writer = next((one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)), None)
        if writer is not None:
            _show(writer, trainer.global_step, entropy, kept(pl_module), learned_coefficients(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: TestTimeAdaptation) -> None:
        """Write everything, and say where."""
        if not _writes(trainer):
            return
        folder = Path(trainer.default_root_dir)
        what = save_merged(pl_module, folder / MERGED_FOLDER)
        save_learned(pl_module, folder / LEARNED_FILE)
        _write_entropies(trainer, pl_module, pl_module.entropies)
        masks, learned = kept(pl_module), learned_coefficients(pl_module)
        if masks is not None:
            _write_csv(folder / KEPT_FILE, ("module", "task", "kept", "directions"), masks.rows())
            _write_png(folder / "plots" / KEPT_PICTURE, kept_ranks(masks))
        if learned is not None:
            rows = [(module, task, f"{value:.7g}") for module, task, value in learned.rows()]
            _write_csv(folder / COEFFICIENTS_FILE, ("module", "task", "coefficient"), rows)
            _write_png(folder / "plots" / COEFFICIENTS_PICTURE, coefficients(learned))
        print(f"{what}: {folder / MERGED_FOLDER}", flush=True)


def kept(module: TestTimeAdaptation) -> KeptRanks | None:
    """Return how many directions are on, where masks are learned."""
    return module.kept() if module.settings.learn != "coefficients" else None


def learned_coefficients(module: TestTimeAdaptation) -> LearnedCoefficients | None:
    """Return the coefficients of what is not left out, where they are learned."""
    if module.settings.learn == "masks":
        return None
    merge = module.merge
    names = [name for name, part in merge.parts.items() if not isinstance(part, OriginPart)]
    values, first = (
        tuple(tuple(row) for name, row in zip(merge.parts, one.detach().tolist(), strict=True) if name in names)
        for one in (module.coefficients, merge.first_coefficients())
    )
    return LearnedCoefficients(tuple(names), tuple(module.task_names), values, first)


def save_merged(module: TestTimeAdaptation, folder: Path) -> str:
    """Write the merge as it stands, a PEFT adapter where one can hold it, else a full model; say which."""
    merged = module.merged()
    if all(
        isinstance(update, LowRankUpdate) and fits_lora(kind_of(merged.metadata, name))
        for name, update in merged.items()
    ):
        least, most = merged.save(folder).ranks
        return f"merged adapter of rank {most}" if least == most else f"merged adapter of ranks {least} to {most}"
    with atomic_folder(folder) as temporary, torch.no_grad():
        write_model(module.tester.model, module.merged_weights(), temporary)
        for adapter in merged.sources:
            if adapter.heads:
                (temporary / HEADS_FOLDER).mkdir(exist_ok=True)
                write_safetensors(adapter.heads, temporary / HEADS_FOLDER / f"{adapter.name}.safetensors")
        about = {"merger": str(merged.merger), "notes": merged.metadata["notes"], "tasks": module.task_names}
        (temporary / MERGE_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return "merged model"


def save_learned(module: TestTimeAdaptation, path: Path) -> None:
    """Write mask logits and coefficients; see `AdaptationCheckpoint` for their order."""
    parts = module.merge.parts
    directions = {name: list(part.counts) for name, part in parts.items()}
    names = {"modules": list(parts), "tasks": module.task_names, "directions": directions}
    with atomic_write(path) as temporary:
        learned = {"logits": module.logits, "coefficients": module.coefficients}
        # One entry of metadata: safetensors writes several in an order of its own, which changes.
        write_safetensors(learned, temporary, {"names": json.dumps(names)})


def _show(writer: Any, step: int, entropy: float, masks: KeptRanks | None, learned: LearnedCoefficients | None) -> None:
    """Put the state after a window into TensorBoard."""
    scalars, pictures = {"entropy_window": entropy}, {}
    if masks is not None:
        scalars |= {"kept_share": masks.share} | {f"kept_share/{task}": share for task, share in masks.shares.items()}
        pictures["kept_rank"] = kept_ranks(masks)
    if learned is not None:
        scalars |= {f"coefficient/{task}": mean for task, mean in learned.means.items()}
        pictures["coefficients"] = coefficients(learned)
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, step)
    for tag, figure in pictures.items():
        writer.add_image(tag, pixels(figure), step, dataformats="HWC")
    writer.flush()


def _write_entropies(trainer: Trainer, module: TestTimeAdaptation, entropies: Sequence[float]) -> None:
    """Write the mean entropy of each window with its last step."""
    ends = [min(number * module.settings.window, trainer.global_step) for number in range(1, len(entropies) + 1)]
    rows = [(step, f"{entropy:.7g}") for step, entropy in zip(ends, entropies, strict=True)]
    _write_csv(Path(trainer.default_root_dir) / ENTROPY_FILE, ("step", "entropy"), rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(csv_text(header, rows), encoding="utf-8")


def _write_png(path: Path, figure: Figure) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not trainer.fast_dev_run
