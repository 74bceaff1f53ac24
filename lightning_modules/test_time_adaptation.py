"""AdaRank and AdaMerging: a merge learned by lowering the entropy of its answers on unlabelled examples."""

import math
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Adam

from lightning_modules.adaptation import Adaptation
from lightning_modules.base import LoRATasks
from lightning_modules.lora import without_adapters
from lightning_modules.processes import check_processes
from lightning_modules.scores import Score, headline_scores, headlines
from lightning_modules.variants import Variant, replaced
from mergers import Adapter, MergedAdapter, SheetbendError
from mergers.adapters.kinds import as_it_lies, as_update_lies
from mergers.adaptive import KeptRanks
from mergers.adaptive.adarank import Encode
from mergers.models import weight_places


class TestTimeAdaptation(LightningModule):
    """Learn masks and coefficients of a merge on batches of all tasks, without labels.

    The loss of a step is the sum over tasks of the mean entropy of the softmax over the task's classes (less
    ``diversity`` times the entropy of the mean softmax). Every weight is merged once a step; each task's batch then
    goes forward and back into the merged weights alone, so that the activations of one task are held at a time; the
    summed gradient goes back into masks and coefficients at the end.

    Paper: Lee et al., AdaRank (arXiv 2503.22178); Yang et al., AdaMerging, ICLR 2024 (arXiv 2310.02575).

    Args:
        tester: the model with its adapters, built; its weights stay as they are.
        settings: what is learned, and how; none: as by default.
        encode: takes the place of the decomposition, such as a cached one.

    Raises:
        SheetbendError: a task has no classes, or less than two; the adapters do not fit together.
    """

    __test__ = False  # no test class, whatever pytest thinks of the name

    def __init__(self, tester: LoRATasks, settings: Adaptation | None = None, encode: Encode | None = None):
        super().__init__()
        self.settings = settings = settings or Adaptation()
        self.strict_loading = False  # checkpoints hold what is learned, not the backbone
        self._classes = {task.name: _present_classes(task) for task in tester.tasks}
        self.tester = tester.requires_grad_(False)
        adapters = tester.adapters()
        for adapter in adapters:  # so that they are saved with the result
            adapter.heads = tester.head_tensors(adapter.name)
        self.merge = settings.prepare(adapters, encode)
        like = self.merge.adapters[0]
        found = Adapter({module: like[module] for module in self.merge.parts}, like.name, metadata=like.metadata)
        self._places = weight_places(found, tester.model)
        self._shapes = {module: like[module].shape for module in found}
        self.logits = torch.nn.Parameter(self.merge.first_logits(), settings.learn != "coefficients")
        self.coefficients = torch.nn.Parameter(self.merge.first_coefficients(), settings.learn != "masks")
        self.entropies: list[float] = []  # mean of each window
        self._window: list[float] = []
        self._parts: dict[str, Any] = {}
        self._origins: dict[str, Tensor] = {}
        # Before the Trainer converts the base, from which those of full checkpoints differ.
        self._hashes = {adapter.name: adapter.content_hash() for adapter in self.merge.adapters}
        self._scaler: Any = None  # of losses, with precision 16-mixed
        self._variant: Variant | None = None
        self._scores: list[Score] = []

    def _apply(self, fn: Any, recurse: bool = True) -> "TestTimeAdaptation":
        """Move or convert the model as torch does, but keep in float32 what is learned: bfloat16 has no small steps.

        What the weights are made of is let go; the next use brings it to where the model is then.
        """
        learned = [(parameter, parameter.data) for parameter in (self.logits, self.coefficients)]
        super()._apply(fn, recurse)
        for parameter, before in learned:
            parameter.data = before.to(parameter.device)
        self._parts, self._origins = {}, {}
        return self

    # The merged weights.

    def _load(self) -> None:
        """Bring to the device what the weights are made of."""
        self.tester.eval()
        parameters = dict(self.tester.model.named_parameters(remove_duplicate=False))
        for module, part in self.merge.parts.items():
            place = self._places[module]
            base = parameters[place.parameter].detach().float()
            lying = as_update_lies(base, self._shapes[module], place.kind, place.transposed)
            self._origins[module] = part.origin(lying)
            self._parts[module] = part.beyond_origin().to(self.device)

    def merged_weights(self) -> dict[str, Tensor]:
        """Return the weights that the merge changes, by parameter name, differentiable in masks and coefficients."""
        if not self._parts:
            self._load()
        parameters = dict(self.tester.model.named_parameters(remove_duplicate=False))
        weights = {}
        pieces = zip(self._parts.items(), self.logits.split(self.merge.sizes), self.coefficients.unbind(), strict=True)
        for (module, part), logits, coefficients in pieces:
            place = self._places[module]
            merged = part.weight(self._origins[module], logits, coefficients, self.settings.temperature)
            dtype = parameters[place.parameter].dtype
            weights[place.parameter] = as_it_lies(merged, place.kind, place.transposed).to(dtype)
        return weights

    def merged(self) -> MergedAdapter:
        """Return the merge as it stands, low-rank where the adapters are; it says how many steps made it."""
        merged = self.merge.merged(self.logits, self.coefficients)
        merged.merger = replace(self.settings, steps=self.global_step or self.settings.steps)
        merged.metadata = merged.metadata | {"notes": [*merged.metadata.get("notes", []), *self.settings.caveats]}
        return merged

    def start(self) -> MergedAdapter:
        """Return the merge as it stood before the first step."""
        start = self.merge.merged(self.merge.first_logits(), self.merge.first_coefficients())
        start.merger = self.settings.beginning
        return start

    def kept(self) -> KeptRanks:
        """Return how many directions of each task are on."""
        return self.merge.kept(self.logits.detach().cpu())

    # Fit.

    def on_fit_start(self) -> None:
        """Bring to the device what the weights are made of; a run that had ended on a plateau has nothing left."""
        self._load()
        self._scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self._stop_on_plateau()

    def training_step(self, batches: tuple[Any, ...], batch_idx: int) -> Tensor:
        """Return the loss of one batch a task, summed; its gradient at the merged weights is in it already."""
        weights = self.merged_weights()
        leaves = leaves_of(weights)
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        losses, total = torch.zeros(2, dtype=torch.float32, device=self.device)  # whatever the Trainer's precision
        for batch in batches:
            loss, entropy = self.there_and_back(batch, leaves, scale)
            losses += loss
            total += entropy
            self.log(f"entropy/{batch.task}", entropy)
        self._require_finite("entropy", total, self.global_step + 1)
        mean = total / len(batches)
        self._window.append(mean.item())
        self.log("entropy", mean, prog_bar=True)
        return _WithGradient.apply(losses, scale, [leaf.grad for leaf in leaves.values()], *weights.values())

    def there_and_back(self, batch: Any, leaves: dict[str, Tensor], scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the loss and the entropy of one task's batch; ``scale`` times its gradient is added to the leaves."""
        with without_adapters(self.tester.model), replaced(self.tester.model, Variant(self.settings.label, leaves)):
            entropy, collapse = self._entropies(batch)
            loss = entropy + self.settings.diversity * collapse
            with torch.autocast(self.device.type, enabled=False):  # each operation goes back as it came
                (scale * loss).backward()
        return loss.detach(), entropy.detach()

    def rehearse_back(self, weights: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
        """Take the gradient of the leaves into masks and coefficients, as a step does, and leave no trace."""
        nothing = torch.zeros((), device=self.device)
        _WithGradient.apply(nothing, 1.0, [leaf.grad for leaf in leaves.values()], *weights.values()).backward()
        self.logits.grad = self.coefficients.grad = None
        self._parts, self._origins = {}, {}

    def _entropies(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the mean entropy of the answers to ``batch`` and minus the entropy of their mean, both scalars."""
        logits = self.tester.logits(self.tester(batch.inputs), batch.task)
        log_p = logits[:, self._classes[batch.task]].float().log_softmax(-1)
        p = log_p.exp()
        return -(p * log_p).sum(-1).mean(), -torch.special.entr(p.mean(0).clamp(min=1e-12)).sum()

    def configure_optimizers(self) -> Adam:
        """Return Adam over what is learned."""
        learned = [parameter for parameter in (self.logits, self.coefficients) if parameter.requires_grad]
        return Adam(learned, lr=self.settings.learning_rate, betas=self.settings.betas)

    def on_train_epoch_end(self) -> None:
        """Note the mean entropy of the window, and stop where it falls no more, if that is asked for."""
        for name in ("logits", "coefficients"):  # a mask that is infinite has no gradient, and no effect on the entropy
            self._require_finite(f"sum of the {name}", getattr(self, name).detach().sum(), self.global_step)
        if self._window:
            mean = torch.tensor(self.entropy, device=self.device)
            self.entropies.append(float(self.trainer.strategy.reduce(mean, reduce_op="mean")))
            self._window = []
        self._stop_on_plateau()

    def _require_finite(self, name: str, value: Tensor, step: int) -> None:
        if not math.isfinite(value.item()):
            raise SheetbendError(
                f"adaptation: the {name} is {value.item()} at step {step}; give a smaller adaptation.learning_rate "
                f"than {self.settings.learning_rate:g}"
            )

    @property
    def entropy(self) -> float:
        """The mean entropy of the window that is being filled, on this process; nan before its first step."""
        return sum(self._window) / len(self._window) if self._window else math.nan

    def _stop_on_plateau(self) -> None:
        if self.settings.stop == "plateau" and on_plateau(self.entropies):
            self.trainer.should_stop = True

    # Validation, for looking only.

    def on_train_epoch_start(self) -> None:
        """Forget the last look: the last window may be too short for one."""
        self._scores = []

    def on_validation_epoch_start(self) -> None:
        """Merge once for this look."""
        self.tester.evaluator.reset()
        with torch.no_grad():
            self._variant = Variant(str(self.settings), self.merged_weights())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Run one batch through the merge as it stands."""
        if batch.labels is not None:  # a last batch may have fewer examples than there are processes
            self.tester.evaluate(self.settings.label, self._variant, batch)

    def on_validation_epoch_end(self) -> None:
        """Note what was measured."""
        self._scores, self._variant = self.tester.evaluator.scores(), None
        for score in headline_scores(self._scores):
            self.log(f"val_{score.metric}/{score.task}", score.value, logger=False, sync_dist=True)

    def scores(self) -> list[Score]:
        """Return what the last validation measured."""
        return list(self._scores)

    def metric(self, task: str) -> str:
        """Return the name of the metric that stands for ``task``."""
        return headlines(self._scores).get(task, "accuracy")

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks, in order."""
        return self.tester.task_names

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is learned; the backbone and the adapters are left out."""
        own = ("logits", "coefficients")
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in own}
        of = {"modules": list(self.merge.parts), "tasks": self.task_names, "adapters": self._hashes}
        state = {"entropies": list(self.entropies), "window": list(self._window), "processes": self.trainer.world_size}
        checkpoint["adaptation"] = of | state | {"settings": self._lasting}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the windows where the checkpoint left them; refuse one of another merge."""
        self.check(checkpoint, self.trainer.world_size)
        saved = checkpoint["adaptation"]
        self.entropies, self._window = list(saved["entropies"]), list(saved["window"])

    @property
    def _lasting(self) -> dict[str, Any]:
        """The settings that a run and the one that goes on with it share; names of folders may differ."""
        return {key: value for key, value in asdict(self.settings).items() if key != "name"}

    def check(self, checkpoint: dict[str, Any], processes: int = 1) -> None:
        """Raise `SheetbendError` if a checkpoint is not of these settings, adapters and number of processes."""
        saved = checkpoint.get("adaptation", {})
        lacking = {"entropies", "window", "settings", "processes"} - set(saved) | {"logits", "coefficients"} - {
            name for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)
        }
        if lacking:
            raise SheetbendError(f"checkpoint lacks {min(lacking)}; give --overwrite true to begin again")
        changed = [key for key, value in self._lasting.items() if saved["settings"].get(key) != value]
        if changed:
            raise SheetbendError(
                f"checkpoint is of other settings ({changed[0]}: {saved['settings'].get(changed[0])} there, "
                f"{self._lasting[changed[0]]} now); give the same, or another adaptation.name"
            )
        if saved.get("tasks") != self.task_names or saved.get("modules") != list(self.merge.parts):
            raise SheetbendError(
                "checkpoint is of another adaptation: its tasks or modules differ; give another run folder"
            )
        for name in ("logits", "coefficients"):
            there, here = (tuple(one.shape) for one in (checkpoint["state_dict"][name], getattr(self, name)))
            if there != here:
                raise SheetbendError(
                    f"checkpoint is of another adaptation: its {name} are {there}, here they are {here}; give another "
                    "run folder"
                )
        check_processes(saved["processes"], processes)
        changed = [task for task, content in self._hashes.items() if saved.get("adapters", {}).get(task) != content]
        if changed:
            raise SheetbendError(
                f"checkpoint is of other adapters: that of {changed[0]} has changed since; give --overwrite true to "
                "begin again, or another adaptation.name"
            )


class _WithGradient(torch.autograd.Function):
    """A loss whose gradients at ``inputs``, times ``scale``, are known; none where no loss has reached."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float, gradients: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.scale, ctx.gradients = scale, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        factor = outer / ctx.scale
        return None, None, None, *(None if one is None else one.mul_(factor) for one in gradients)


def leaves_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the same values that take gradients of their own, where those given would take any."""
    return {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in weights.items()}


def on_plateau(entropies: list[float], drop: float = 0.01, patience: int = 2) -> bool:
    """Return whether none of the last ``patience`` values is below (1 - drop) times the lowest before them.

    >>> on_plateau([1.0, 0.8, 0.799, 0.798]), on_plateau([1.0, 0.8, 0.7, 0.699])
    (True, False)
    """
    before, last = entropies[:-patience], entropies[-patience:]
    return bool(before) and all(value >= (1 - drop) * min(before) for value in last)


def _present_classes(task: Any) -> list[int]:
    """Return the classes that the task's examples may have; raise where there is nothing to choose from."""
    if not hasattr(task, "absent"):  # as all tasks of a classifier have it
        raise SheetbendError(
            f"task {task.name}: it has no head, its answers are words; adaptation needs classes, as image and text "
            "classifiers have them"
        )
    names = task.class_names
    present = [index for index, name in enumerate(names) if name not in task.absent]
    if len(present) < 2:
        raise SheetbendError(
            f"task {task.name}: it has one class ({names[present[0]]}), and so no entropy to lower; leave the task out"
        )
    return present
