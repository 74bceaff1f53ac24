"""Each task's best adapter on disk, as a PEFT folder."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from lightning_modules import LoRATasks
from lightning_modules.adapter_folders import write_adapter


class AdapterCheckpoint(Callback):
    """Write ``<run folder>/adapters/<task>`` whenever a validation finds that task's best adapter so far.

    The folder is what `PeftModel.from_pretrained` loads; the task's head and metrics.json
    (validation score, training batches, base model, fingerprints of the data splits) stand beside the weights. A task
    that no validation has measured is written as it stands when training ends, and so is a folder that is missing.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Write the adapters that have improved."""
        if isinstance(pl_module, LoRATasks) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            for task in pl_module.improved:
                self._write(trainer, pl_module, task)

    def on_fit_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Write what is not there yet."""
        if not isinstance(pl_module, LoRATasks):  # a merge was learned, of adapters that stay as they are
            return
        pl_module.restore_best()
        for task in pl_module.task_names:
            if task not in pl_module.best or not _folder(trainer, task).is_dir():
                self._write(trainer, pl_module, task)

    def _write(self, trainer: Trainer, module: LoRATasks, task: str) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        progress = module.progress[task]
        measured = task in module.best
        metrics = {
            "task": task,
            "base_model": module.base_name,
            f"val_{module.metric(task)}": progress.best if measured else None,
            "batches": progress.best_batches if measured else progress.batches,
            "seed": module.seed,
            "splits": trainer.datamodule.fingerprints().get(task, {}),
        }
        write_adapter(module.model, task, _folder(trainer, task), module.head_tensors(task), metrics)


def _folder(trainer: Trainer, task: str) -> Path:
    return Path(trainer.default_root_dir) / "adapters" / task
