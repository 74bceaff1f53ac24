"""Short runs of the tiny CLIP, for tests of training and of testing."""

from lightning.pytorch import Trainer

from lightning_modules import ImageClassifier, LoRA
from tests.stand_ins import StandIns

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def module(folder, **arguments):
    defaults = {"lora": LoRA(r=4, dropout=0.1), "learning_rate": 1e-2, "warmup_steps": 3}
    return ImageClassifier(folder, **{**defaults, **arguments})


def fit(folder, root, tasks, callbacks=(), data=None, ckpt_path=None, **arguments):
    flags = {"max_epochs": 4, "num_sanity_val_steps": 0, "enable_checkpointing": False, "gradient_clip_val": 0.5}
    flags |= {name: arguments.pop(name) for name in list(arguments) if name in FLAGS}
    model = module(folder, **arguments)
    trainer = Trainer(default_root_dir=root, callbacks=list(callbacks), **{**QUIET, **flags})
    trainer.fit(model, StandIns(tasks, **(data or {})), ckpt_path=ckpt_path, weights_only=True)
    return model


FLAGS = (
    "accumulate_grad_batches",
    "enable_checkpointing",
    "limit_train_batches",
    "limit_val_batches",
    "max_epochs",
    "max_steps",
    "precision",
    "val_check_interval",
)
