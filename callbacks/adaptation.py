"""What a learned merge leaves on disk: its weights, its masks and coefficients, and a picture of what is kept."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.kept_plot import kept_ranks, pixels
from callbacks.plots import png
from callbacks.results import csv_text
from lightning_modules.full_checkpoints import write_model
from lightning_modules.test_time_adaptation import TestTimeAdaptation
from mergers import LowRankUpdate
from mergers.adapters.kinds import fits_lora, kind_of
from mergers.files import atomic_folder, atomic_write, write_safetensors
from mergers.output.folder import HEADS_FOLDER

MERGED_FOLDER = "merged"
LEARNED_FILE = "learned.safetensors"
KEPT_FILE = "kept_rank.csv"


class AdaptationCheckpoint(Callback):
    """Write what `TestTimeAdaptation` has learned when it ends, and draw the kept ranks on the way.

    The run folder gets ``merged/`` (a PEFT adapter, or a full model where updates are of full rank),
    ``learned.safetensors`` (mask logits and coefficients, with the names of modules and tasks), ``kept_rank.csv`` and
    ``plots/kept_rank.png``: how many directions of each task are on in each module. TensorBoard gets the picture after
    each window of steps.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TestTimeAdaptation) -> None:
        """Draw the kept ranks into TensorBoard."""
        writer, kept = _writer(trainer), pl_module.kept()
        if writer is None or not kept.modules:
            return
        writer.add_scalar("kept_share", kept.share, trainer.global_step)
        image = pixels(kept_ranks(kept))
        writer.add_image("kept_rank", image, trainer.global_step, dataformats="HWC")
        writer.flush()

    def on_fit_end(self, trainer: Trainer, pl_module: TestTimeAdaptation) -> None:
        """Write everything."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder, kept = Path(trainer.default_root_dir), pl_module.kept()
        save_merged(pl_module, folder / MERGED_FOLDER)
        with atomic_write(folder / LEARNED_FILE) as temporary:
            learned = {"logits": pl_module.logits, "coefficients": pl_module.coefficients}
            names = {"modules": list(pl_module.merge.parts), "tasks": pl_module.task_names}
            # One entry of metadata: safetensors writes several in an order of its own, which changes.
            write_safetensors(learned, temporary, {"names": json.dumps(names)})
        if kept.modules:
            with atomic_write(folder / KEPT_FILE) as temporary:
                temporary.write_text(csv_text(("module", "task", "kept", "directions"), kept.rows()), encoding="utf-8")
            with atomic_write(folder / "plots" / "kept_rank.png") as temporary:
                temporary.write_bytes(png(kept_ranks(kept)))


def save_merged(module: TestTimeAdaptation, folder: Path) -> None:
    """Write the merge as it stands: a PEFT adapter where one can hold it, else a full model."""
    merged = module.merged()
    if all(
        isinstance(update, LowRankUpdate) and fits_lora(kind_of(merged.metadata, name))
        for name, update in merged.items()
    ):
        merged.save(folder)
        return
    with atomic_folder(folder) as temporary, torch.no_grad():
        write_model(module.tester.model, module.merged_weights(), temporary)
        for adapter in merged.sources:
            if adapter.heads:
                (temporary / HEADS_FOLDER).mkdir(exist_ok=True)
                write_safetensors(adapter.heads, temporary / HEADS_FOLDER / f"{adapter.name}.safetensors")


def _writer(trainer: Trainer) -> Any:
    """Return the TensorBoard of the run, on the first process; none where there is none."""
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return None
    return next((one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)), None)
