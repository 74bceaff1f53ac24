"""Merged models in the evaluation loop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules import LoRATasks, Variant
from lightning_modules.adapter_folders import check_base
from lightning_modules.checks import check_folder_name
from lightning_modules.full_checkpoints import is_full_checkpoint, load_full_checkpoint
from lightning_modules.variants import ENSEMBLE, FINETUNED, PRETRAINED, ensemble
from mergers import Adapter, Merger, SheetbendError, load_adapter
from mergers.output.summary import MERGE_FILE

# Variants that are always there, and the other folders that stand beside theirs in tensorboard/.
RESERVED = (PRETRAINED, FINETUNED, ENSEMBLE, "training", "report")


class MergeCallback(Callback):
    """Merge the adapters in every configured way, and have each batch run through all of them.

    At the start of each validation and test the adapters are merged as they stand, and the results are tested beside
    the pretrained model and the finetuned adapters in one sweep of the data.

    Args:
        mergers: the merges to test, by the name they have in tables and curves; each a Merger, the name of one of
            `mergers.PRESETS`, such as knots-ties, or the folder of a merge that was made before, such as what
            ``sheetbend merge`` or ``sheetbend adapt`` has written (a name with a slash in it).
        while_fitting: also merge at each validation while fitting, so that curves show merged against finetuned
            accuracy over training.
        ensemble: also test all adapters together, in the joint label space: every example runs through each of them,
            and the largest logit of each joint label counts (Stoica et al., 2025, arXiv 2410.19735, section 5.3).
            Takes as many passes as there are tasks; validations while fitting leave it out.
    """

    def __init__(self, mergers: dict[str, Merger | str], while_fitting: bool = True, ensemble: bool = False):
        for name in mergers:
            if name in RESERVED:
                raise SheetbendError(
                    f"merger {name!r} has a name that stands for something else ({', '.join(RESERVED)}); choose another"
                )
            check_folder_name("merger", name)
        self.mergers = {name: _merge_of(name, merger) for name, merger in mergers.items()}
        self.while_fitting = while_fitting
        self.ensemble = ensemble

    def build_variants(self, module: LoRATasks) -> dict[str, Variant]:
        """Merge the adapters of ``module`` as they stand in every configured way."""
        if self.ensemble and not getattr(module.evaluator, "joint", None):
            raise SheetbendError(
                "callbacks.MergeCallback: ensemble is true, but the tasks share no label space in which adapters could "
                "vote; leave it out"
            )
        adapters = module.adapters()
        merged = {name: self._variant(module, merge, adapters) for name, merge in self.mergers.items()}
        return {**({ENSEMBLE: ensemble()} if self.ensemble else {}), **merged}

    def check(self, tasks: list[str]) -> None:
        """Raise `SheetbendError` for coefficients that do not fit ``tasks``; to be called before work begins."""
        for name, merger in self.mergers.items():
            try:
                if isinstance(merger, Merger):
                    merger.task_coefficients(tasks)
            except SheetbendError as error:
                raise SheetbendError(f"merger {name}: {error}") from None

    def on_validation_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Merge for this validation; while fitting, a merge that fails is left out of it with a warning."""
        if not isinstance(pl_module, LoRATasks):  # a merge is being learned, which is looked at alone
            return
        if trainer.state.fn != "fit":
            pl_module.set_variants(self.build_variants(pl_module))
            return
        variants = {}
        if self.while_fitting and not trainer.sanity_checking:
            adapters = pl_module.adapters()
            for name, merger in self.mergers.items():
                if not isinstance(merger, Merger):  # made before, of other adapters than these
                    continue
                try:
                    variants[name] = self._variant(pl_module, merger, adapters)
                except SheetbendError as error:  # a task has diverged, say: the others go on
                    rank_zero_warn(f"{name} is not measured at this validation: {error}")
        pl_module.set_variants(variants)

    def on_test_start(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Merge for this test; by now a checkpoint's weights are in place."""
        pl_module.set_variants(self.build_variants(pl_module))

    @staticmethod
    def _variant(module: LoRATasks, merge: Merger | Adapter | Path, adapters: list[Adapter]) -> Variant:
        """Return what a merge of ``adapters`` gives, or one that was made before."""
        if isinstance(merge, Merger):
            return module.variant(str(merge), merge.merge(adapters))
        if isinstance(merge, Path):
            made, notes = what_was_merged(merge)
            variant = module.variant(f"{made}; read from {merge}", load_merge(merge, module))
            return replace(variant, caveats=tuple(f"{merge}: {note}" for note in notes))
        return module.variant(str(merge.merger), merge)

    def on_validation_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Let go of the merged weights."""
        if isinstance(pl_module, LoRATasks):
            _release(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LoRATasks) -> None:
        """Let go of the merged weights."""
        _release(pl_module)


def what_was_merged(folder: Path) -> tuple[str, list[str]]:
    """Return what a folder says of the merge in it: how it was made, and what the user of it should know."""
    try:
        content = json.loads((folder / MERGE_FILE).read_text(encoding="utf-8"))
        return str(content["merger"]), [str(note) for note in content["notes"]]
    except (OSError, ValueError, KeyError, TypeError):  # of another maker, or of an earlier one
        return "a merge that was made before", []


def load_merge(folder: Path, module: LoRATasks) -> Adapter:
    """Read a merge that was made before: a PEFT folder, or a full model of the same backbone.

    Raises:
        SheetbendError: it is of another base model.
    """
    if is_full_checkpoint(folder):
        return load_full_checkpoint(folder, "merged", module.model.get_base_model(), module.base_name)
    adapter = load_adapter(folder, name="merged")
    check_base(adapter, folder, module.base_name)
    return adapter


def _merge_of(name: str, merge: Any) -> Any:
    """Return what stands for a merge; a string is a preset, or a folder."""
    if not isinstance(merge, str):
        return merge
    if "/" not in merge and not Path(merge).is_dir():
        return Merger.preset(merge)
    if not Path(merge).expanduser().is_dir():
        raise SheetbendError(f"merger {name}: {merge} is no folder; give that of a merge, or the name of a preset")
    return Path(merge).expanduser()


def _release(module: LoRATasks) -> None:
    """Drop the tensors but keep the descriptions, which the report reads."""
    module.variants = {name: variant.released() for name, variant in module.variants.items()}
