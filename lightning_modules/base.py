"""One frozen backbone, one LoRA adapter a task, trained in turn and tested in every variant."""

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.adapter_folders import find_adapters, install_adapters, refuse_full_checkpoints
from lightning_modules.backbones import base_name, checkpoint_activations
from lightning_modules.checks import check_number
from lightning_modules.evaluation import VariantTester
from lightning_modules.lora import LoRA, adapter_parameters, live_adapter, wrap
from lightning_modules.processes import AdapterDDP, sum_gradients, summed
from lightning_modules.progress import SCHEDULES, TaskProgress, steps_of_each
from lightning_modules.scores import headline_scores
from lightning_modules.variants import FINETUNED
from mergers import Adapter, SheetbendError
from mergers.seeding import derive_seed


class LoRATasks(VariantTester):
    """Fine-tune one LoRA adapter a task on one shared, frozen backbone.

    Each training batch belongs to one task and touches that task's adapter only: AdamW passes over parameters
    without a gradient, clipping sees one task's gradients, and learning rate, data order, dropout and early stopping
    are the task's own. Training T adapters together therefore gives what T separate runs give, to rounding. One
    task is plain fine-tuning. Several processes, each with a part of every batch (strategy `AdapterDDP`), give what one
    gives with the whole batch, to rounding and to dropout.

    The datamodule names the tasks: objects with ``name`` and whatever the subclass's heads need.

    Args:
        backbone: folder of a transformers model, the name of one that ships with Sheetbend, or a hub id.
        lora: rank, scale, dropout and target layers of the adapters.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's decoupled weight decay of the adapters.
        betas: AdamW's decay rates of the first and the second moment.
        warmup_steps: optimiser steps of one task over which its learning rate rises from zero.
        warmup_ratio: the same as a share of the task's steps; where it is given, ``warmup_steps`` is 0.
        schedule: what follows over the rest of the task's steps: a ``cosine`` to zero, a ``linear`` fall to zero, or
            ``constant``.
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        patience: validations in a row without a gain of ``min_delta`` after which a task stops; none: never.
        min_delta: gain in the validation score (accuracy, a fraction) that counts for ``patience``.
        adapters: adapters to start from instead of fresh ones: a folder with one PEFT folder a task in it, or a map
            from task name to PEFT folder; hub ids do too, and ``{task}`` in a name stands for the task's. A full
            checkpoint is tested and merged as its difference from the backbone, but not trained. ``validate`` and
            ``test`` look in the run folder where none is given.
        dtype: of the frozen backbone's weights; adapters and heads are trained in float32.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: about a third
            more time, far less memory.
        merged_weights: how merged models are held while they are tested: ``dense`` copies of the weights that change,
            ``branch`` for low-rank updates beside their layers where that takes less memory, or ``auto``: branches for
            backbones of more than a billion parameters.
        seed: seeds initial values and dropout, together with the task's name; none takes the one given to
            ``seed_everything``, else 0.
    """

    def __init__(
        self,
        backbone: str,
        lora: LoRA = LoRA(),
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        warmup_ratio: float = 0.0,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
        label_smoothing: float = 0.0,
        patience: int | None = None,
        min_delta: float = 1e-3,
        adapters: str | dict[str, str] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        gradient_checkpointing: bool = False,
        merged_weights: Literal["auto", "dense", "branch"] = "auto",
        seed: int | None = None,
    ):
        super().__init__(merged_weights)
        if not isinstance(lora, LoRA):
            raise SheetbendError(f"model.lora is {lora}; give the adapters' shape, such as {{r: 16}}, or leave it out")
        check_number("learning_rate", learning_rate, above=0)
        check_number("warmup_ratio", warmup_ratio, least=0, below=1)
        check_number("label_smoothing", label_smoothing, least=0, below=1)
        if warmup_ratio and warmup_steps:
            raise SheetbendError(
                f"warmup_steps is {warmup_steps} and warmup_ratio {warmup_ratio}; give one, and 0 for the other"
            )
        check_number("patience", 1 if patience is None else patience, least=1)
        for name, value in (("weight_decay", weight_decay), ("warmup_steps", warmup_steps), ("min_delta", min_delta)):
            check_number(name, value, least=0)
        for beta in betas or [None]:
            check_number("betas", beta, least=0, below=1)
        self.backbone_name = backbone
        self.lora = lora
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.min_delta = min_delta
        self.adapter_source = adapters
        self.backbone_dtype = getattr(torch, dtype)
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.strict_loading = False  # checkpoints hold the adapters, not the frozen base

        self.head_name: str | None = None  # of the backbone's own head, where each task has one like it
        self.given_heads: dict[str, dict[str, Tensor]] = {}
        self.data: Any = None
        self.progress: dict[str, TaskProgress] = {}
        self.best: dict[str, dict[str, Tensor]] = {}
        self.improved: tuple[str, ...] = ()
        self._stepping: str | None = None

    # What a subclass says of its backbone, heads and loss.

    @abstractmethod
    def build_backbone(self) -> nn.Module:
        """Load the backbone."""

    @abstractmethod
    def build_heads(self, tasks: Sequence[Any]) -> None:
        """Make the heads of ``tasks``."""

    def task_parameters(self, task: str) -> dict[str, nn.Parameter]:
        """Return what is trained for ``task`` alone, by its name in this module: its adapter, and its head if any."""
        return {f"model.{name}": p for name, p in adapter_parameters(self.model, task).items()}

    def head_tensors(self, task: str) -> dict[str, Tensor]:
        """Return the head of ``task`` as tensors to save beside its adapter."""
        return {}

    def loss(self, features: Tensor, labels: Tensor, task: str) -> Tensor:
        """Return the training loss, a scalar: cross entropy over the classes that the task has."""
        logits = self.task_logits(features, task)
        loss = nn.functional.cross_entropy(logits, labels)
        if not self.label_smoothing:
            return loss
        present = torch.isfinite(logits[0].detach())
        spread = -logits.log_softmax(-1)[:, present].mean()
        return (1 - self.label_smoothing) * loss + self.label_smoothing * spread

    def loss_terms(self, labels: Tensor) -> int:
        """Return how many terms `loss` is the mean of; by which the parts of several processes are weighed."""
        return len(labels)

    # Building.

    @property
    def base_name(self) -> str:
        """The base model's name as adapters carry it."""
        return base_name(self.backbone_name)

    def configure_model(self) -> None:
        """Build backbone, adapters, heads and metrics for the datamodule's tasks; Lightning calls it."""
        if self.model is None:
            data = self.trainer.datamodule
            self.build(data.tasks, fresh=self.trainer.state.fn == "fit", data=data)

    def build(
        self, tasks: Sequence[Any], fresh: bool = True, run_folder: str | Path | None = None, data: Any = None
    ) -> None:
        """Build everything for ``tasks``.

        Args:
            tasks: the tasks, each with a ``name``.
            fresh: start from new adapters where none are given; else they must exist.
            run_folder: where ``adapters/<task>`` is looked for if not fresh; the trainer's folder by default.
            data: the datamodule, after its ``setup``, for heads that are made of training examples.
        """
        self.data = data
        names = [task.name for task in tasks]
        unknown = [name for name in self.lora.r if name not in names] if isinstance(self.lora.r, dict) else []
        if unknown:
            raise SheetbendError(f"lora.r names {unknown[0]!r}, which is no task of this run ({', '.join(names)})")
        source = self.adapter_source
        if source is None and not fresh:
            source = str(Path(run_folder or self.trainer.default_root_dir) / "adapters")
        folders = None if source is None else find_adapters(source, names)
        if fresh and folders is not None:
            refuse_full_checkpoints(folders)
        backbone = self.build_backbone()
        if folders is None:
            configs = {name: self.lora.config(name, self.base_name) for name in names}
            self.model = wrap(backbone, configs, self.seed)
        else:
            installed = install_adapters(backbone, folders, self.base_name, self.head_name)
            self.model, self.donors, self.given_heads = installed.model, installed.donors, installed.heads
        if self.gradient_checkpointing:
            self._checkpoint_activations()
        self.tasks = tuple(tasks)
        self.progress = {name: TaskProgress() for name in names}
        self.build_heads(tasks)
        self.evaluator = self.build_evaluator(tasks)

    def _checkpoint_activations(self) -> None:
        checkpoint_activations(self.model.get_base_model())

    # Training.

    @contextlib.contextmanager
    def _own_random_stream(self, task: str) -> Iterator[None]:
        """Draw dropout from (seed, task, batch of that task), and leave the global generators as they were."""
        rank = self.global_rank
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            stream = ("dropout", self.progress[task].batches, *([rank] if rank else []))
            torch.manual_seed(derive_seed(self.seed, task, *stream))
            yield

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the loss of one batch of one task, or none for the empty turn of a finished task.

        Of several processes each returns its part of the loss, so that the sum of their gradients is that of the batch.
        """
        several = self.trainer.world_size > 1
        if batch.labels is None and not batch.elsewhere:
            return self._no_loss() if several else None
        if batch.labels is None:
            loss = self._no_loss()
        else:
            self.activate(batch.task)
            with self._own_random_stream(batch.task):
                loss = self.loss(self(batch.inputs), batch.labels, batch.task)
        if several:
            terms = 0 if batch.labels is None else self.loss_terms(batch.labels)
            loss = loss * (terms / summed(terms, self.device))
        self.progress[batch.task].batches += 1
        self._stepping = batch.task
        size = batch.elsewhere + (0 if batch.labels is None else len(batch.labels))
        self.log(f"train_loss/{batch.task}", loss, batch_size=size, sync_dist=several, reduce_fx="sum")
        return loss

    def rehearse_step(self, batch: Any) -> None:
        """Do what a training step on ``batch`` does but for the optimiser's part, and leave no trace."""
        self.activate(batch.task)
        with self._own_random_stream(batch.task):
            self.loss(self(batch.inputs), batch.labels, batch.task).backward()
        for parameter in self.task_parameters(batch.task).values():
            parameter.grad = None

    def _no_loss(self) -> Tensor:
        """Return a loss without a gradient: Lightning takes no other of several processes."""
        return torch.zeros((), device=self.device, requires_grad=True)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take a step; of several processes with the sum of their gradients, before they are unscaled and clipped."""

        def closure() -> Any:
            loss = optimizer_closure()
            if self._stepping is None:  # an empty turn
                return None
            sum_gradients(self.task_parameters(self._stepping).values())
            return loss

        several = self.trainer.world_size > 1
        super().optimizer_step(epoch, batch_idx, optimizer, closure if several else optimizer_closure)

    def on_before_optimizer_step(self, optimizer: AdamW) -> None:
        """Count the step for the task whose gradients it uses; empty turns have none."""
        if self._stepping is not None:
            self.progress[self._stepping].steps += 1
            self._stepping = None

    def configure_optimizers(self) -> dict[str, Any]:
        """Return one AdamW with a parameter group a task, and a schedule that counts each task's own steps."""
        per_epoch = self.trainer.datamodule.steps_per_epoch()
        max_epochs, max_steps = self.trainer.max_epochs, self.trainer.max_steps
        if max_steps == -1 and max_epochs in (-1, None):
            raise SheetbendError(
                "trainer.max_epochs is -1 and trainer.max_steps too; the schedule needs a length, give one of them"
            )
        totals = steps_of_each(per_epoch, -1 if max_epochs is None else max_epochs, max_steps)
        warmup = {name: self.warmup_steps or round(self.warmup_ratio * total) for name, total in totals.items()}
        short = [name for name, total in totals.items() if total <= warmup[name]]
        if short and not self.trainer.fast_dev_run:
            others = f", and those of {', '.join(short[1:])} neither" if short[1:] else ""
            rank_zero_warn(
                f"task {short[0]}: warmup_steps is {warmup[short[0]]}, and the steps in all are {totals[short[0]]}: "
                f"its learning rate never reaches its peak{others}"
            )
        groups = [{"params": list(self.task_parameters(name).values()), "name": name} for name in self.task_names]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)

        def factor(name: str, _: int) -> float:
            return SCHEDULES[self.schedule](self.progress[name].steps, totals[name], warmup[name])

        factors = [_bind(factor, name) for name in self.task_names]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, factors),
                "interval": "step",
                "name": "learning_rate",
            },
        }

    @property
    def finished_tasks(self) -> tuple[str, ...]:
        """The tasks that have stopped early; the datamodule gives them empty turns."""
        return tuple(name for name, progress in self.progress.items() if progress.finished)

    def on_fit_start(self) -> None:
        """Switch dropout on, and stop at once where a resumed run has nothing left to train."""
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, AdapterDDP):
            raise SheetbendError(
                f"the Trainer's strategy is {type(self.trainer.strategy).__name__}, in which each process would train "
                "for itself; give lightning_modules.AdapterDDP()"
            )
        self.train()  # from_pretrained leaves a model in eval mode
        self._stop_if_all_finished()

    def on_fit_end(self) -> None:
        """Leave the best adapter of each task in the model."""
        self.restore_best()

    def restore_best(self) -> None:
        """Load each task's best adapter so far."""
        for name, state in self.best.items():
            for key, parameter in self.task_parameters(name).items():
                parameter.data.copy_(state[key])

    def _stop_if_all_finished(self) -> None:
        if self.progress and len(self.finished_tasks) == len(self.progress):
            self.trainer.should_stop = True

    # Best states.

    def on_validation_epoch_end(self) -> None:
        """Note what was measured; while fitting, keep the best adapters and stop the tasks that gain no more."""
        super().on_validation_epoch_end()
        self.improved = ()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._keep_best()

    def _keep_best(self) -> None:
        improved = []
        for score in headline_scores(self._scores):
            if score.variant != FINETUNED or self.progress[score.task].finished:
                continue
            if self.progress[score.task].record(score.value, self.min_delta, self.patience):
                improved.append(score.task)
                parameters = self.task_parameters(score.task)
                self.best[score.task] = {key: p.detach().cpu().clone() for key, p in parameters.items()}
        self.improved = tuple(improved)
        self._stop_if_all_finished()

    # Adapters and checkpoints.

    def adapters(self) -> list[Adapter]:
        """Copy every task's adapter as it stands, on CPU in float32, in the order of the tasks."""
        donors = self.donors.adapters
        return [
            donors[name] if name in donors else live_adapter(self.model, name, self.base_name)
            for name in self.task_names
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the adapters, their best states and each task's progress; the frozen base is left out."""
        keep = {key for name in self.task_names for key in self.task_parameters(name)}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keep}
        checkpoint["tasks"] = {name: asdict(progress) for name, progress in self.progress.items()}
        checkpoint["best"] = self.best
        checkpoint["processes"] = self.trainer.world_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up each task's progress where the checkpoint left it."""
        if set(checkpoint.get("tasks", {})) != set(self.task_names):
            saved = ", ".join(checkpoint.get("tasks", {})) or "none"
            raise SheetbendError(
                f"checkpoint holds the tasks {saved}, this run has {', '.join(self.task_names)}; give the same tasks"
            )
        expected = {key: p.shape for name in self.task_names for key, p in self.task_parameters(name).items()}
        found = {key: value.shape for key, value in checkpoint["state_dict"].items()}
        if found != expected:
            key = next(iter(dict(set(expected.items()) ^ set(found.items()))))
            raise SheetbendError(
                f"checkpoint does not fit model.init_args.lora: {key} differs; give the rank and target_modules it was "
                "trained with"
            )
        self.progress = {name: TaskProgress(**state) for name, state in checkpoint["tasks"].items()}
        self.best = checkpoint["best"]
        if self.trainer.state.fn != "fit":  # measured are the best adapters, as from their folders
            for state in self.best.values():
                checkpoint["state_dict"].update(state)


def _bind(function: Any, name: str) -> Any:
    """Fix the first argument; a plain function, since LambdaLR would pickle the state of a callable object."""
    return lambda epoch: function(name, epoch)
