"""Fully fine-tuned checkpoints beside adapters: as differences to merge, and as weights to test."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig

from lightning_modules.variants import Variant, merged_variant
from mergers import Adapter, SheetbendError
from mergers.adapters import CONFIG_FILE
from mergers.adapters.common import facts_without_config
from mergers.adapters.differences import FLOATING, DifferenceUpdate, Held, Stored, stored_tensors
from mergers.adapters.files import read_pickle
from mergers.adapters.hub import fetch, is_hub_id
from mergers.adapters.kinds import Kind
from mergers.adapters.names import Renaming, listed, module_name
from mergers.files import write_safetensors
from mergers.models import PEFT_PREFIX


class Unadapted(nn.Module):
    """A backbone to which no adapter belongs, with the face of a `PeftModel`."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = backbone.requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone."""
        return self.base_model.model(*args, **kwargs)

    def get_base_model(self) -> nn.Module:
        """Return the backbone."""
        return self.base_model.model

    def disable_adapter(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing."""
        return contextlib.nullcontext()


def is_full_checkpoint(source: str | Path) -> bool:
    """Return whether ``source`` is a whole model rather than an adapter; no weights are read.

    Args:
        source: a folder, a file, or a hub id; of one on the hub, the adapter's configuration is fetched if it has one.
    """
    if is_hub_id(source):
        return not (fetch(str(source), (CONFIG_FILE,)) / CONFIG_FILE).is_file()
    path = Path(source)
    if path.is_file():
        if path.suffix in (".pt", ".pth", ".bin"):
            return not any(".lora_" in str(key) for key in read_pickle(path))
        return path.suffix == ".safetensors"
    weights = [*path.glob("model*.safetensors*"), *path.glob("pytorch_model.bin")] if path.is_dir() else []
    return bool(weights) and not (path / CONFIG_FILE).is_file()


def load_full_checkpoint(
    source: str | Path,
    task: str,
    backbone: nn.Module,
    base_name: str,
    head: str | None = None,
    modules: Collection[str] | None = None,
) -> Adapter:
    """Return what full fine-tuning added to ``backbone``, as an adapter whose updates are read when they are used.

    The checkpoint may hold a larger model, of which the backbone is a part: one prefix must explain its names. Tensors
    without a place in the backbone are left out, and parts of the backbone that the checkpoint lacks altogether (such
    as CLIP's projection) are taken to be unchanged; both stand in ``metadata["notes"]``.

    Args:
        source: what `mergers.load_difference` reads.
        task: name of the task.
        backbone: the model before fine-tuning; its parameters are kept, not copied, and adapters in it passed over.
        base_name: its name.
        head: name of the head that was taken off the backbone; its tensors go to ``heads``.
        modules: names of the modules to keep, as adapters have them; all if none.

    Raises:
        SheetbendError: the checkpoint is of another model; the message names the first difference.
    """
    stored = stored_tensors(source)
    label = str(source)
    held = {name: value for name, value in backbone.named_parameters() if ".lora_" not in name}
    places = {_bare(name): name for name in held}
    parameters = {name: held[place] for name, place in places.items()}
    way = _renaming(parameters, stored, label, backbone)
    found = {name: stored[way(name)] for name in parameters if name.startswith(way.strip) and way(name) in stored}
    notes = _left_alone(parameters, found, label, base_name)
    heads = {key: part.read() for key, part in stored.items() if head and key.startswith(f"{head}.")}
    rest = [key for key in stored if key not in {way(name) for name in found} and key not in heads]
    floating = [key for key in rest if stored[key].dtype in FLOATING]
    if floating:
        notes.append(f"{task}: {listed(floating, 2)} of the checkpoint have no place in {base_name}")
    updates, kinds = {}, {}
    for name, part in found.items():
        module = module_name(name)
        if modules is not None and module not in modules:
            continue
        if part.shape != tuple(parameters[name].shape) or part.dtype not in FLOATING:
            raise SheetbendError(
                f"checkpoint {label}: {way(name)} is {part.dtype} {part.shape}, but {base_name} has "
                f"{tuple(parameters[name].shape)}; give a checkpoint of this backbone"
            )
        owner = backbone.get_submodule(places[name].rpartition(".")[0])
        pair = (part, Held(parameters[name]))
        if name.endswith("weight") and type(owner).__name__ == "Conv1D":
            pair = tuple(_Turned(one) for one in pair)
        updates[module] = DifferenceUpdate(*pair, f"adapter {label}: {name}")
        kinds[module] = _kind(owner, name, part.shape)
    if modules is not None and set(modules) - set(updates):
        lacking = sorted(set(modules) - set(updates))
        raise SheetbendError(
            f"checkpoint {label}: it has no {listed(lacking)}, which the adapters of this run change; give a "
            "checkpoint of this backbone"
        )
    dtypes = (FLOATING[part.dtype] for part in found.values())
    metadata = facts_without_config(dtypes, kinds, label) | ({"notes": notes} if notes else {})
    return Adapter(updates, name=task, base_model=base_name, metadata=metadata, heads=heads)


def _bare(name: str) -> str:
    """Return the name that a parameter of a PEFT model has in the bare backbone."""
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def _renaming(
    parameters: Mapping[str, Tensor], stored: Mapping[str, Stored | Held], label: str, backbone: nn.Module
) -> Renaming:
    """Return the prefix under which the checkpoint holds most of the backbone, with shapes that fit."""
    ways: dict[Renaming, None] = {}
    for name in sorted(parameters, key=lambda name: -name.count("."))[:1]:  # a deep name is the least ambiguous
        parts = name.split(".")
        ends = [(name, "")] + [(".".join(parts[i:]), ".".join(parts[:i]) + ".") for i in range(1, len(parts))]
        for key in stored:
            for end, strip in ends:
                if key == end or (not strip and key.endswith(f".{end}")):
                    ways[Renaming(add=key.removesuffix(end), strip=strip)] = None
    counts = {
        way: sum(
            name.startswith(way.strip) and way(name) in stored and stored[way(name)].shape == tuple(value.shape)
            for name, value in parameters.items()
        )
        for way in ways
    }
    best = max(counts, key=counts.get, default=None)
    if best is None or not counts[best]:
        raise SheetbendError(
            f"checkpoint {label}: it holds no weight of {type(backbone).__name__}, but {listed(stored, 3)}; give a "
            "checkpoint of this backbone"
        )
    if sum(count == counts[best] for count in counts.values()) > 1:
        raise SheetbendError(
            f"checkpoint {label}: several parts of it fit {type(backbone).__name__} ("
            + ", ".join(repr(way.add) for way, count in counts.items() if count == counts[best])
            + "); save the part that is meant"
        )
    return best


def _left_alone(parameters: Mapping[str, Any], found: Mapping[str, Any], label: str, base_name: str) -> list[str]:
    """Return a note on parts of the backbone that the checkpoint lacks; raise where it has some of a part only."""
    missing = [name for name in parameters if name not in found]
    torn = [name for name in missing if name.split(".")[0] in {other.split(".")[0] for other in found}]
    if torn:
        raise SheetbendError(
            f"checkpoint {label}: it has no {listed(torn)}, but {base_name} has; give a whole checkpoint of this "
            "backbone"
        )
    return [f"{label}: it has no {listed(missing, 2)}, which are as in {base_name}"] if missing else []


def _kind(owner: nn.Module, name: str, shape: tuple[int, ...]) -> Kind:
    """Return the kind of a parameter of ``owner``."""
    if name.endswith("weight") and (isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"):
        return "linear"
    if len(shape) in (3, 4, 5) and isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return {"conv": list(shape[2:])}
    return "parameter" if len(shape) in (1, 2) else {"shape": list(shape)}


@dataclass(frozen=True, eq=False)
class _Turned:
    """A weight that is stored (in, out), read as (out, in)."""

    stored: Stored | Held

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.stored.shape))

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def read(self, rows: slice | None = None) -> Tensor:
        turned = self.stored.read().T
        return turned if rows is None else turned[rows]


def write_model(model: "PeftModel | Unadapted", weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the backbone of ``model`` with some of its weights replaced, as its own ``from_pretrained`` reads it.

    Args:
        model: carries the backbone; adapters in it are left out.
        weights: what takes the place of parameters, by their names in ``model``.
        folder: exists; gets ``model.safetensors``, and ``config.json`` of a transformers model.
    """
    backbone = model.get_base_model()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **weights}
    own = {_bare(name): tensor for name, tensor in tensors.items()}
    kept = set(map(_bare, backbone.state_dict()))
    state = {name: tensor.detach() for name, tensor in own.items() if name in kept and ".lora_" not in name}
    write_safetensors(state, folder / "model.safetensors")
    if isinstance(getattr(backbone, "config", None), PretrainedConfig):
        backbone.config.save_pretrained(folder)


@dataclass
class Donors:
    """The fully fine-tuned models of a run's tasks, as weights to test.

    Attributes:
        adapters: by task, what each adds to the base.
    """

    adapters: dict[str, Adapter] = field(default_factory=dict)
    _held: dict[str, Variant] = field(default_factory=dict)

    def variant(self, task: str, model: nn.Module, keep_others: bool = False) -> Variant:
        """Return the model of ``task``, read at its first use; that of another task is let go unless it is kept."""
        if task not in self._held:
            if not keep_others:
                self._held.clear()
            self._held[task] = merged_variant(f"the checkpoint of {task}", self.adapters[task], model)
        return self._held[task]

    def release(self) -> None:
        """Let go of all weights."""
        self._held.clear()
