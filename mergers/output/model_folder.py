"""Adding updates to a full model on disk, tensor by tensor, without loading the model."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mergers.adapters.differences import Stored, stored_tensors
from mergers.adapters.files import read_json, reading
from mergers.adapters.kinds import as_it_lies, kind_of, lying_shape
from mergers.adapters.names import listed, module_name, renamings
from mergers.errors import SheetbendError
from mergers.functional.linalg import sum_of_squares
from mergers.output.summary import MERGE_FILE, ModuleNumbers
from mergers.updates import Update

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Weights in other formats, which would contradict the merged ones.
_FOREIGN_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite", ".ot")
_BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class Place:
    """Where an update belongs in a folder of safetensors files.

    Attributes:
        stored: The tensor.
        turned: Whether linear weights lie (in, out).
    """

    stored: Stored
    turned: bool


def find_places(
    folder: str | Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]
) -> dict[str, Place]:
    """Return the tensor of each module in a full model, by the headers alone.

    Args:
        folder: Of a full model: ``model.safetensors``, or an index and its shards.
        shapes: Module to the shape of its update.
        metadata: Of the adapters: kinds and fan_in_fan_out.

    Raises:
        SheetbendError: No full model, a module is missing in it, or lies otherwise.
    """
    path = Path(folder)
    if not path.is_dir():
        raise SheetbendError(f"{folder} is no folder; give the folder of the full base model")
    if (path / MERGE_FILE).exists():
        raise SheetbendError(f"{folder} carries a merge already; give the folder of the base model itself")
    known = {module_name(key): stored for key, stored in stored_tensors(path).items()}
    found = renamings(list(shapes), known)
    if len(found) != 1:
        missing = [module for module in shapes if module not in known]
        problem = f"has no {listed(missing)}" if not found else "has these modules under more than one prefix"
        raise SheetbendError(f"{folder} {problem}; give the model that the adapters were trained on")
    turned = bool(metadata.get("fan_in_fan_out", False))
    places = {}
    for module, shape in shapes.items():
        stored = known[found[0](module)]
        if stored.dtype not in _DTYPES:
            raise SheetbendError(f"{folder}: {stored.key} is stored as {stored.dtype}; give the unquantised model")
        wanted = lying_shape(shape, kind_of(metadata, module), turned)
        if stored.shape != wanted:
            raise SheetbendError(
                f"{folder}: {stored.key} is {stored.shape}, but the adapters' update of it is {wanted}; give the model "
                "that they were trained on"
            )
        places[module] = Place(stored, turned)
    _refuse_tied(path, places, metadata)
    return places


def _refuse_tied(folder: Path, places: Mapping[str, Place], metadata: Mapping[str, Any]) -> None:
    """Raise for a LoRA on an embedding that the model also uses as its output layer, or on that layer.

    In the file there is one tensor for both; PEFT adapts one of them.
    """
    config = folder / "config.json"
    if not config.is_file() or read_json(config).get("tie_word_embeddings") is not True:
        return
    for module, place in places.items():
        kind = kind_of(metadata, module)
        if kind == "embedding" or (kind == "linear" and module.rpartition(".")[2] in ("lm_head", "embed_out")):
            raise SheetbendError(
                f"{folder}: {place.stored.key} is tied (tie_word_embeddings in config.json), and a LoRA on {module} "
                "changes one of its two uses; untie the weights of the model first"
            )


def copy_model(source: Path, target: Path) -> list[str]:
    """Copy the files of a model folder; return the names of what was left out: folders, and other formats' weights."""
    left_out = []
    for entry in sorted(source.iterdir()):
        if entry.is_file() and entry.suffix not in _FOREIGN_WEIGHTS and not entry.name.startswith("."):
            with reading(entry), entry.open("rb"):
                pass
            shutil.copyfile(entry, target / entry.name)  # outside: a full disk is no fault of the source
        elif not entry.name.startswith(".") and entry.name != "README.md":
            left_out.append(entry.name)
    return left_out


class ModelPatch:
    """Adds updates in place to the tensors of a copied model folder; may be called from several threads.

    Args:
        folder: The copy.
        places: Where each module's update belongs, as `find_places` returned it for the original.
        metadata: Of the adapters: the kinds.
    """

    def __init__(self, folder: Path, places: Mapping[str, Place], metadata: Mapping[str, Any]):
        self.folder = folder
        self.places = places
        self.metadata = metadata
        self._offsets = {
            name: _offsets(folder / name) for name in sorted({place.stored.path.name for place in places.values()})
        }

    def add(self, module: str, update: Update) -> ModuleNumbers:
        """Add one module's update, in float32, and write the sum back in the dtype of the model.

        Raises:
            SheetbendError: A sum does not fit that dtype.
        """
        stored, turned = self.places[module].stored, self.places[module].turned
        delta = as_it_lies(update.dense(), kind_of(self.metadata, module), turned).reshape(-1)
        dtype = _DTYPES[stored.dtype]
        start = self._offsets[stored.path.name][stored.key]
        squared_norm = rounding = 0.0
        handle = os.open(self.folder / stored.path.name, os.O_RDWR)
        try:
            for first in range(0, delta.numel(), _BLOCK_ENTRIES):
                part = delta[first : first + _BLOCK_ENTRIES].cpu()
                place = start + first * dtype.itemsize
                content = bytearray(os.pread(handle, part.numel() * dtype.itemsize, place))
                weight = torch.frombuffer(content, dtype=dtype)
                total = weight + part if dtype.itemsize > 4 else weight.float() + part
                weight.copy_(total)
                if not torch.isfinite(weight).all():
                    raise SheetbendError(f"{stored.key}: base and update together do not fit {dtype}")
                _write_all(handle, content, place)
                squared_norm += sum_of_squares(part)
                rounding += sum_of_squares(weight.to(total.dtype) - total)
        finally:
            os.close(handle)
        return ModuleNumbers(rank=None, squared_norm=squared_norm, truncation=0.0, rounding=rounding)


def _write_all(handle: int, content: bytearray, place: int) -> None:
    """Write all of ``content`` at ``place``: the system may take a part at a time."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(handle, rest, place)
        rest, place = rest[written:], place + written


def _offsets(path: Path) -> dict[str, int]:
    """Return where each tensor of a safetensors file begins; the file has been read by safetensors before."""
    with reading(path), path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {key: 8 + size + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"}
