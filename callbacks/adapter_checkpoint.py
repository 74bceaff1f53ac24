"""Each task's best adapter on disk, as a PEFT folder."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from lightning_modules import LoRATasks
from lightning_modules.adapter_folders import write_adapter


class AdapterCheckpoint(Callback):
    """Write ``<run folder>/adapters/<task>`` whenever a validation finds that task's best adapter so far.

    The folder is what `PeftModel.from_pretrained` loads; the task's head (head.safetensors) and metrics.json
    (accuracy, training batches, base model, fingerprints of the data splits) stand beside the weights.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Write the adapters that have improved."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        fingerprints = trainer.datamodule.fingerprints() if pl_module.improved else {}
        for task in pl_module.improved:
            progress = pl_module.progress[task]
            metrics = {
                "task": task,
                "base_model": pl_module.base_name,
                "val_accuracy": progress.best,
                "batches": progress.best_batches,
                "epoch": trainer.current_epoch,
                "seed": pl_module.seed,
                "splits": fingerprints.get(task, {}),
            }
            folder = Path(trainer.default_root_dir) / "adapters" / task
            write_adapter(pl_module.model, task, folder, pl_module.head_tensors(task), metrics)
