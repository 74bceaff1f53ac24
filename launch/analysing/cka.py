"""How alike the outputs of the tasks' updates are: centred kernel alignment, layer by layer."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from callbacks.analysis_plots import cka_plot
from callbacks.results import counted, csv_text
from launch.analysing.output import Finding
from launch.commands.screen import say, table
from lightning_modules import LoRATasks
from lightning_modules.adapter_folders import check_base, fill_in
from lightning_modules.full_checkpoints import is_full_checkpoint, load_full_checkpoint
from lightning_modules.variants import pretrained
from mergers import Adapter, KnOTS, SheetbendError, Update, load_adapter
from mergers.adapters import CONFIG_FILE
from mergers.adapters.hub import is_hub_id
from mergers.functional.alignment import Moments, add_rows, linear_cka_of_maps
from mergers.models import match_parameters

LORA, KNOTS, WHOLE = "LoRA", "LoRA in KnOTS space", "full fine-tuning"


@dataclass
class Watched:
    """One layer: what its updates are, and what its inputs were.

    Attributes:
        updates: by kind, one (out, in) a task.
        watch: (d, in), the projection of the inputs whose moments are kept: all A of the updates' factors below each
            other, or None for the inputs themselves where that takes less.
        moments: of the projected inputs; None: there were none.
    """

    updates: Mapping[str, Sequence[Update]]
    watch: Tensor | None = None
    moments: Moments | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        every = [update for kind in self.updates.values() for update in kind]
        if sum(update.rank for update in every) < every[0].shape[1]:
            self.watch = torch.cat([update.load().factors()[1] for update in every])

    def see(self, x: Tensor) -> None:
        """Count in inputs (n, in)."""
        if self.watch is not None:
            self.watch = self.watch.to(x.device)
            x = x.float() @ self.watch.T
        self.moments = add_rows(self.moments, x)

    def alignments(self) -> dict[str, Tensor]:
        """Return (T, T) for each kind of update."""
        scatter, found, at = self.moments.scatter.cpu(), {}, 0
        for kind, updates in self.updates.items():
            maps = []
            for B, A in (update.load().factors() for update in updates):
                if self.watch is None:
                    maps.append(B.double() @ A.double())
                else:  # A is `watch` from `at` on: B acts on these rows
                    whole = torch.zeros(B.shape[0], len(scatter), dtype=torch.float64)
                    whole[:, at : at + A.shape[0]] = B
                    maps.append(whole)
                at += A.shape[0]
            found[kind] = linear_cka_of_maps(maps, scatter)
        return found


def updates_of(adapters: Sequence[Adapter], whole: Sequence[Adapter], module: str) -> dict[str, Sequence[Update]]:
    """Return each kind of update of one module.

    In KnOTS space, task i's update is V_i: U is common to all and CKA knows no rotations, so it is left out; with the
    singular values, diag(s) V_i, it would be the update itself.
    """
    updates = [adapter[module].load() for adapter in adapters]
    found = {WHOLE: [adapter[module] for adapter in whole]} if whole else {}
    return {**found, LORA: updates, KNOTS: KnOTS(scale_by_singular_values=False).encode(updates).coordinates}


def sources_of(whole: str | Mapping[str, str], tasks: Sequence[str]) -> dict[str, str]:
    """Return where the fully fine-tuned model of each task is; the hub is asked for what is no path.

    Raises:
        SheetbendError: it is nowhere.
    """
    folder = isinstance(whole, str) and "{task}" not in whole  # with a model a task in it, so no hub ids
    if isinstance(whole, str):
        found = {task: str(Path(whole) / task) if folder else fill_in(whole, task) for task in tasks}
    else:
        found = {task: whole[task] for task in tasks if task in whole}
    for task in tasks:
        if task not in found:
            raise SheetbendError(f"analysis.whole names no model of {task}; add `{task}: PATH`")
    for task, source in found.items():
        if Path(source).exists():
            _check_model(source)
            continue
        if folder or not is_hub_id(source):
            raise SheetbendError(f"analysis.whole: {source} does not exist; give the fine-tuned model of {task}")
        try:
            is_full_checkpoint(source)
        except SheetbendError as error:
            raise SheetbendError(f"analysis.whole: there is no {Path(source).absolute()}, and {error}") from None
    return found


def _check_model(source: str) -> None:
    """Raise `SheetbendError` for a folder without weights, before data and model are loaded."""
    path = Path(source)
    if path.is_dir() and not is_full_checkpoint(path) and not (path / CONFIG_FILE).is_file():
        raise SheetbendError(
            f"analysis.whole: {source} holds neither model*.safetensors nor {CONFIG_FILE}; give a fine-tuned model"
        )


def whole_models(model: LoRATasks, source: str | Mapping[str, str], modules: Sequence[str]) -> list[Adapter]:
    """Return what full fine-tuning added to ``modules``, one adapter a task; LoRA adapters are taken too."""
    found = []
    for task, folder in sources_of(source, model.task_names).items():
        if is_full_checkpoint(folder):
            backbone = model.model.get_base_model()
            adapter = load_full_checkpoint(folder, task, backbone, model.base_name, model.head_name, modules)
        else:
            adapter = load_adapter(folder, name=task)
            check_base(adapter, folder, model.base_name)
            lacking = [module for module in modules if module not in adapter]
            if lacking:
                raise SheetbendError(f"analysis.whole: {folder} has no {lacking[0]}, which the adapters here change")
        found.append(adapter)
    return found


def analyse(
    trainer: Trainer,
    model: LoRATasks,
    data: LightningDataModule,
    split: str,
    examples: int,
    source: str | Mapping[str, str] | None,
) -> Finding:
    """Compare the outputs of the tasks' updates on the inputs that their layers have in the pretrained model.

    Raises:
        SheetbendError: no layer can be watched, or ``source`` has no models of this backbone.
    """
    adapters = model.adapters()
    names = [name for name, update in adapters[0].items() if len(update.shape) == 2]
    whole = whole_models(model, source, names) if source else []
    layers = {name: Watched(updates_of(adapters, whole, name)) for name in names}
    loaders = data.sample_loaders(split, examples)
    kinds = list(next(iter(layers.values())).updates) if layers else []
    seen = len(loaders[0].sampler.order)
    say(
        f"analysis cka: {counted(len(layers), 'layer')}, {counted(len(adapters), 'task')}, {' | '.join(kinds)}; "
        f"{counted(seen, 'example')} of each task's {split} data through the pretrained model"
    )
    with watched(model, layers, adapters[0]) as mask:
        run_through(trainer, model, loaders, mask)
    blind = [name for name, layer in layers.items() if layer.moments is None]
    found = {name: layer.alignments() for name, layer in layers.items() if layer.moments is not None}
    if not found:
        raise SheetbendError("analysis cka: no layer that the adapters change is called with inputs")
    notes = (f"{counted(len(blind), 'layer')} had no inputs of their own: {blind[0]}",) if blind else ()
    return finding(found, [adapter.name for adapter in adapters], notes)


class Mask:
    """Which positions of the present batch are no padding: (N, L) bool; None: all."""

    present: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """Return (n, in): the inputs (..., in) without those of padding, where the shape says which these are."""
        if self.present is not None and x.shape[:-1] == self.present.shape:
            return x[self.present]
        return x.reshape(-1, x.shape[-1])


@contextlib.contextmanager
def watched(model: LoRATasks, layers: Mapping[str, Watched], adapter: Adapter) -> Iterator[Mask]:
    """Have each layer count in its inputs as the model runs."""
    mask, hooks = Mask(), []

    def see(layer: Watched, width: int, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if x is not None and x.is_floating_point() and x.shape[-1] == width:
            layer.see(mask.rows(x.detach()))

    try:
        for name, place in match_parameters(adapter, model.model).items():
            # PEFT's layer around it, which is called with the same inputs, also where it does the work itself.
            owner = model.model.get_submodule(place.rpartition(".")[0].removesuffix(".base_layer"))
            if name in layers:
                hook = partial(see, layers[name], adapter[name].shape[1])
                hooks.append(owner.register_forward_pre_hook(hook, with_kwargs=True))
        yield mask
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_through(trainer: Trainer, model: LoRATasks, loaders: Sequence[Any], mask: Mask) -> None:
    """Run batches through the pretrained model."""
    model.to(trainer.strategy.root_device).eval()
    for loader in loaders:
        for batch in loader:
            batch = move_data_to_device(batch, model.device)
            given = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
            mask.present = None if given is None else given.bool()
            with trainer.precision_plugin.forward_context():
                model.features_of(pretrained(), batch.inputs, batch.task)


def finding(found: Mapping[str, Mapping[str, Tensor]], tasks: Sequence[str], notes: tuple[str, ...] = ()) -> Finding:
    """Put together what is kept and shown.

    Args:
        found: by layer and kind, (T, T).
        tasks: the names of rows and columns.
        notes: what a reader should know.
    """
    kinds = list(next(iter(found.values())))
    means = {kind: torch.stack([layer[kind] for layer in found.values()]).nanmean(0) for kind in kinds}
    pairs = list(itertools.combinations(range(len(tasks)), 2))
    off = {kind: float(torch.stack([mean[i, j] for i, j in pairs]).nanmean()) for kind, mean in means.items()}
    rows = [
        (kind, layer, tasks[i], tasks[j], float(matrix[kind][i, j]))
        for kind in kinds
        for layer, matrix in {**found, "mean": means}.items()
        for i, j in pairs
    ]
    shown = table("pair", *kinds)
    for i, j in pairs:
        shown.add_row(f"{tasks[i]}, {tasks[j]}", *(f"{float(means[kind][i, j]):.3f}" for kind in kinds))
    shown.add_section()
    shown.add_row("mean", *(f"{off[kind]:.3f}" for kind in kinds))
    each = {
        kind: [(index, float(torch.stack([layer[kind][i, j] for i, j in pairs]).nanmean()))
               for index, layer in enumerate(found.values())]
        for kind in kinds
    }  # fmt: skip
    return Finding(
        "cka",
        {"cka.csv": csv_text(("updates", "layer", "first", "second", "cka"), rows)},
        cka_plot({kind: mean.tolist() for kind, mean in means.items()}, tasks, off),
        {kind.replace(" ", "-"): {"cka/mean": [(0, off[kind])], "cka/by_layer": each[kind]} for kind in kinds},
        f"Linear CKA of the outputs of the tasks' updates, mean over {counted(len(found), 'layer')}",
        shown,
        notes,
    )
