"""The contenders: each loads the adapters, merges them by its own public means, and shows what came out."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.geometries import GEOMETRIES
from benchmarks.shims import FrozenMap, imported_from, linear_tree, module_tree, timed
from benchmarks.works import Work, contender_density

#: A module's update: dense (out, in), or B (out, r) and A (r, in).
Delta = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A contender with its adapters loaded.

    Attributes:
        run: Does the work; this is what is timed.
        collect: Turns what ``run`` returned into the updates by module, after the clock has stopped.
        notes: What is said about the run.
    """

    run: Callable[[], Any]
    collect: Callable[[Any], dict[str, Delta]]
    notes: dict[str, Any] = field(default_factory=dict)


#: Takes a work and the folders of its adapters, with everything imported.
Load = Callable[[Work, list[Path]], Prepared]


def contender(name: str, clone: str | None = None, scratch: Path | None = None) -> Load:
    """Return how the contender of this name loads adapters, after importing what it needs.

    Args:
        name: One of `benchmarks.works.LABELS`.
        clone: Path of the published code, for those that need it.
        scratch: Folder for what is written.
    """
    if name in ("knots", "core", "mergekit"):
        import peft  # noqa: F401  they import it, and it shall look for optional packages before there are stand-ins
        import transformers  # noqa: F401

        return {"knots": _knots, "core": _core, "mergekit": _mergekit}[name](str(clone))
    if name == "peft":
        return _peft()
    return _ours(name, scratch or Path())


# Ours


def our_merger(work: Work) -> Any:
    """Return the `mergers.Merger` of a work."""
    import mergers

    name, settings = work.method
    settings = dict(settings)
    if work.one_fewer:
        out_features, in_features = next(iter(GEOMETRIES[work.geometry].modules().values()))
        settings["density"] = contender_density(settings["density"], out_features * in_features)
    finish = {"finish": work.finish} if work.finish else {}
    return mergers.Merger(space=work.space, method=getattr(mergers, name)(**settings), **finish)


def _in_memory(adapter: Any) -> Any:
    """Return the adapter with its tensors read."""
    from mergers import Adapter

    updates = {module: update.load() for module, update in adapter.items()}
    return Adapter(updates, adapter.name, adapter.base_model, adapter.metadata)


def _our_updates(adapter: Any) -> dict[str, Delta]:
    from mergers import LowRankUpdate

    return {
        module: update.factors() if isinstance(update, LowRankUpdate) else update.dense()
        for module, update in adapter.items()
    }


def _weights(model: nn.Module) -> dict[str, Delta]:
    """Return the weights of a model that was zero: what was added to it."""
    return {name.removesuffix(".weight"): tensor for name, tensor in model.state_dict().items()}


def _ours(name: str, scratch: Path) -> Load:
    import mergers

    def load(work: Work, folders: list[Path]) -> Prepared:
        output = scratch / "merged"
        merger = our_merger(work)
        if work.ending == "disk":

            def from_disk() -> Path:
                merged = merger.merge([mergers.load_adapter(folder) for folder in folders])
                if work.truncate:
                    merged.save(output, rank=work.truncate)
                else:
                    merged.save(output)
                return output

            return Prepared(from_disk, read_folder)
        adapters = [_in_memory(mergers.load_adapter(folder)) for folder in folders]
        if work.ending == "stream":

            def stream() -> dict[str, float]:
                return {
                    module: sum(float(block.sum()) for block in update.blocks(1024))
                    for module, update in merger.stream(adapters)
                }

            return Prepared(stream, lambda sums: {})
        if name == "ours-applied":
            model = linear_tree(GEOMETRIES[work.geometry].modules())
            return Prepared(lambda: merger.merge(adapters).apply(model), _weights)
        if work.truncate:
            return Prepared(lambda: merger.merge(adapters).truncated(work.truncate), _our_updates)
        return Prepared(lambda: merger.merge(adapters), _our_updates)

    return load


def read_folder(folder: Path) -> dict[str, Delta]:
    """Return the updates of a PEFT folder."""
    from mergers import load_adapter

    return _our_updates(load_adapter(folder))


# PEFT


def _peft() -> Load:
    from peft import PeftModel

    def load(work: Work, folders: list[Path]) -> Prepared:
        model = PeftModel.from_pretrained(
            linear_tree(GEOMETRIES[work.geometry].modules()), folders[0], adapter_name="task_0"
        )
        for index, folder in enumerate(folders[1:], start=1):
            model.load_adapter(folder, adapter_name=f"task_{index}")
        names = list(model.peft_config)
        settings = {"density": work.method[1]["density"]} if "density" in work.method[1] else {}
        if work.truncate:
            settings["svd_rank"] = work.truncate

        def run() -> Any:
            model.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type=work.peft, **settings)
            return model

        def collect(model: Any) -> dict[str, Delta]:
            layers = model.base_model.model.named_modules()
            return {
                name: (layer.lora_B["merged"].weight.detach(), layer.lora_A["merged"].weight.detach())
                for name, layer in layers
                if "merged" in getattr(layer, "lora_A", {})
            }

        return Prepared(run, collect, notes={"call": f"add_weighted_adapter(combination_type={work.peft!r})"})

    return load


# Published research code, from clones

#: What the published scripts import for their datasets and models, and merging does not use.
_UNUSED_PACKAGES: dict[str, dict[str, Any]] = {name: {} for name in ("clip", "open_clip", "einops", "datasets")}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _zero_weights(work: Work) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.zeros(shape) for name, shape in GEOMETRIES[work.geometry].modules().items()}


def _peft_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a PEFT folder, float32, named as in a PEFT model with one adapter."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor.float()
        for name, tensor in tensors.items()
    }


def _top_percent(work: Work) -> float:
    return 100 * work.method[1]["density"]


def _knots(clone: str) -> Load:
    """The published KnOTS code: its merge handlers, on modules that hold the LoRA factors and a zero base."""
    with imported_from(clone, _UNUSED_PACKAGES) as missing, _silent():
        from ft_handlers import LoRAHandler
        from task_merger import get_merge_handler

    def load(work: Work, folders: list[Path]) -> Prepared:
        config = {
            "representation": "svd-vector" if work.space == "knots" else "vector",
            "sign_resolve_mode": "sum_of_values",
            "topK": _top_percent(work),
            "merge_method": "ties",
            "merging_type": "mean",
            "concat_across_output": True,
            "dare": False,
        }
        models = [module_tree(_peft_tensors(folder)) for folder in folders]
        weights = _zero_weights(work)
        empty = {
            f"{name.removesuffix('.weight')}.lora_{side}.default.weight": torch.zeros(shape)
            for name, weight in weights.items()
            for side, shape in (("A", (1, weight.shape[1])), ("B", (weight.shape[0], 1)))
        }
        base = module_tree({**weights, **empty})

        def run() -> nn.Module:
            with torch.no_grad(), imported_from(clone, _UNUSED_PACKAGES), _silent():
                merger = get_merge_handler(config["representation"])(
                    models, pretrained_model=base, param_handler=LoRAHandler, device="cpu", merge_config=config
                )
                merger.transform(config)
                merger.set_scaling_coeffs(1.0)
                return merger.merge(config)

        def collect(model: nn.Module) -> dict[str, Delta]:
            return {name: delta for name, delta in _weights(model).items() if ".lora_" not in name}

        return Prepared(run, collect, notes={"stand-ins": missing})

    return load


def _core(clone: str) -> Load:
    """The published Core Space code: its handler that merges matrix by matrix."""
    with imported_from(clone, _UNUSED_PACKAGES) as missing, _silent():
        from ft_handlers import LoRAHandler
        from task_merger import get_merge_handler

    def load(work: Work, folders: list[Path]) -> Prepared:
        config = {
            "representation": "matrix_per_layer",
            "merge_space": work.space,
            "merge_method": "ties",
            "topK": _top_percent(work),
            "isotropize": work.finish == "iso",
        }
        models = [_peft_tensors(folder) for folder in folders]
        base = module_tree(_zero_weights(work))
        ranks: list[float] = []
        notes: dict[str, Any] = {"stand-ins": missing}

        def run() -> nn.Module:
            matrix_rank = torch.linalg.matrix_rank
            torch.linalg.matrix_rank = timed(matrix_rank, ranks)  # it takes the rank of each result, to print it
            try:
                with torch.no_grad(), imported_from(clone, _UNUSED_PACKAGES), _silent():
                    merger = get_merge_handler(config["representation"])(
                        models, pretrained_model=base, param_handler=LoRAHandler, device="cpu", merge_config=config
                    )
                    merger.transform(config)
                    merger.set_scaling_coeffs(1.0)
                    return merger.merge(config)
            finally:
                torch.linalg.matrix_rank = matrix_rank
                notes["seconds in matrix_rank, for a message"] = round(sum(ranks), 3)

        return Prepared(run, _weights, notes)

    return load


def _mergekit(clone: str) -> Load:
    """The merge methods of mergekit, on one module's dense deltas at a time: it takes adapters only with a base."""
    import pydantic

    # The pydantic that it pins takes torch.Tensor as a type parameter; later ones want to be told.
    pydantic.BaseModel.model_config = {"arbitrary_types_allowed": True}
    stand_ins = {"immutables": {"Map": FrozenMap}, "sentencepiece": {}, "datasets": {}}
    with imported_from(clone, stand_ins) as missing, _silent():
        from mergekit.architecture import WeightInfo
        from mergekit.common import ImmutableMap, ModelPath, ModelReference
        from mergekit.merge_methods import REGISTERED_MERGE_METHODS
        from mergekit.merge_methods.base import TensorDictWrapper

    def load(work: Work, folders: list[Path]) -> Prepared:
        name, settings = work.method
        method = REGISTERED_MERGE_METHODS[{"Ties": "ties", "Mean": "linear"}[name]]
        adapters = [_peft_tensors(folder) for folder in folders]
        base = ModelReference(model=ModelPath(path="base"))
        tasks = [ModelReference(model=ModelPath(path=folder.name)) for folder in folders]
        options = {option.name: option.default_value for option in method.parameters()}
        of_each = {"weight": 1.0, **({"density": settings["density"]} if "density" in settings else {})}
        of_tasks = ImmutableMap({task: ImmutableMap(of_each) for task in tasks})
        nothing = TensorDictWrapper(tensors=ImmutableMap({}))
        weights = _zero_weights(work)

        def run() -> dict[str, Tensor]:
            for module in weights:
                stem = module.removesuffix(".weight")
                deltas = {
                    task: tensors[f"{stem}.lora_B.default.weight"] @ tensors[f"{stem}.lora_A.default.weight"]
                    for task, tensors in zip(tasks, adapters, strict=True)
                }
                if name == "Ties":
                    deltas[base] = weights[module]
                task = method.make_task(
                    output_weight=WeightInfo(name=module),
                    tensors=nothing,
                    base_model=base,
                    parameters=ImmutableMap(options),
                    tensor_parameters=of_tasks,
                )
                weights[module] = task.execute(tensors=deltas)
            return weights

        def collect(weights: dict[str, Tensor]) -> dict[str, Delta]:
            return {module.removesuffix(".weight"): delta for module, delta in weights.items()}

        return Prepared(run, collect, notes={"stand-ins": missing, "given": "dense deltas, made in the timed part"})

    return load
