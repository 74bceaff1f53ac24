"""The difference of two full checkpoints, read tensor by tensor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mergers.adapters.common import facts_without_config
from mergers.adapters.files import is_file, plain_tensor, read_json, read_pickle, reading
from mergers.adapters.hub import fetch, is_hub_id, repository_name
from mergers.adapters.kinds import Kind
from mergers.adapters.names import listed, module_name, require_module_name
from mergers.errors import SheetbendError, did_you_mean
from mergers.functional.linalg import SVD, Factors, all_finite
from mergers.updates import Adapter, DenseUpdate, Update

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_PICKLED_FILE = "pytorch_model.bin"
_PICKLES = (".pt", ".pth", ".bin")
#: The floating dtypes of safetensors that can be merged, by torch's names.
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, as its header describes it.

    Attributes:
        path: The file.
        key: The tensor's name in it.
        shape: Its shape.
        dtype: Its dtype in the words of the format, such as ``BF16``.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, rows: slice | None = None) -> Tensor:
        """Return the tensor, or some of its rows; nothing else is read."""
        with reading(self.path), safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.key) if rows is None else file.get_slice(self.key)[rows]


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor in memory, or mapped from a file of ``torch.save``, with the face of `Stored`.

    Attributes:
        tensor: Its values; not copied.
    """

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """The tensor's dtype in the words of safetensors, such as ``BF16``; other than floating ones in torch's."""
        name = str(self.tensor.dtype).removeprefix("torch.")
        return next((word for word, floating in FLOATING.items() if floating == name), name)

    def read(self, rows: slice | None = None) -> Tensor:
        """Return the tensor, or some of its rows."""
        return self.tensor.detach() if rows is None else self.tensor.detach()[rows]


@dataclass(frozen=True, eq=False)
class DifferenceUpdate(Update):
    """finetuned - base of one parameter, read from both places when it is used and not kept.

    Attributes:
        finetuned: The tensor after training.
        base: The tensor before.
        label: The parameter with its adapter, for messages.
        factor: What the difference is multiplied with.
        device: Where the difference is computed.
    """

    finetuned: Stored | Held
    base: Stored | Held
    label: str
    factor: float = 1.0
    device: torch.device | str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), further dimensions flattened into ``in``; or (n,)."""
        shape = self.base.shape
        if len(shape) <= 2:
            return shape or (1,)
        return (shape[0], torch.Size(shape[1:]).numel())

    @property
    def rank(self) -> int:
        """min(out, in); 1 for a vector."""
        return min(self.shape) if len(self.shape) == 2 else 1

    def _part(self, rows: slice | None = None) -> Tensor:
        """Return the difference in float32, or some rows of it."""
        after, before = (stored.read(rows).to(self.device).float() for stored in (self.finetuned, self.base))
        delta = (after - before).reshape(-1, *self.shape[1:])
        if not all_finite(delta):
            raise SheetbendError(f"{self.label} holds NaN or infinity; train or download the checkpoint again")
        return delta if self.factor == 1.0 else delta * self.factor

    def load(self) -> DenseUpdate:
        """Read both tensors and return their difference."""
        return DenseUpdate(self._part())

    def dense(self) -> Tensor:
        """Return the difference."""
        return self.load().delta

    def blocks(self, rows: int) -> Iterator[Tensor]:
        """Yield the difference of ``rows`` rows at a time; only these are read."""
        if not self.base.shape:  # a number has no rows
            yield self._part()
            return
        for start in range(0, self.shape[0], rows):
            yield self._part(slice(start, start + rows))

    def sample(self, step: int) -> Tensor:
        """Return every ``step``-th entry of every ``step``-th row of the difference; only these rows are read."""
        part = self._part(slice(None, None, step) if self.base.shape else None)
        return part[..., ::step] if part.ndim > 1 else part

    def factors(self) -> Factors:
        """Return the difference and the identity."""
        return self.load().factors()

    def svd(self) -> SVD:
        """Return the decomposition of the difference."""
        return self.load().svd()

    def squared_norm(self) -> float:
        """Return the sum of squares."""
        return self.load().squared_norm()

    def scaled(self, factor: float) -> "DifferenceUpdate":
        """Return ``factor`` times the difference, still unread."""
        return replace(self, factor=self.factor * factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return the difference as ``delta``."""
        return self.load().tensors()

    def to(self, device: torch.device | str) -> "DifferenceUpdate":
        """Return the same difference, to be computed on ``device``."""
        return replace(self, device=device)


def load_difference(
    finetuned: str | Path,
    base: str | Path,
    name: str | None = None,
    modules: Sequence[str] | None = None,
    linear: bool = False,
) -> Adapter:
    """Return what full fine-tuning added to a model, as an adapter whose updates stay on disk until they are used.

    A module's ``weight`` becomes the update of the module, any other parameter an update of its own full name
    (``layers.0.q.bias``). Tensors with more than two dimensions are flattened to (first dimension, rest); one of no
    dimension becomes a vector of one. Parameters that training left alone are updates of zeros.

    Only headers are read here. Both checkpoints must have the same floating tensors, in the same shapes; floating
    buffers, such as running means, count as parameters. Tensors of integers or booleans are left out, but refused if
    both checkpoints have them with other values.

    Args:
        finetuned: Folder of ``model.safetensors``, of its shards with their index or of ``pytorch_model.bin``; a
            single ``.safetensors`` file; a state dict that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``), read
            with weights_only; or a hub id.
        base: The checkpoint that training began from, likewise.
        name: Name of the task; the folder's or file's own name if not given.
        modules: Ends of the names to keep, whole parts of them: ``["q_proj", "norm.bias"]``; all if not given.
        linear: Whether the weights of ``modules`` are of linear layers stored as (out, in), so that a low-rank
            result can be saved as a LoRA adapter. A checkpoint does not tell them from embeddings.

    Raises:
        SheetbendError: The checkpoints do not fit together; the message lists the tensors.
    """
    if linear and not modules:
        raise SheetbendError("linear is True for all parameters; name those that are linear layers: modules=['q_proj']")
    if isinstance(modules, str):
        raise SheetbendError(f"modules is {modules!r}; give a list of names, such as [{modules!r}]")
    after, before = stored_tensors(finetuned), stored_tensors(base)
    if modules is not None:
        after, before = _restricted(after, before, modules, str(finetuned))
    label = str(finetuned)
    _check_pair(after, before, label, str(base))
    updates: dict[str, Update] = {}
    kinds: dict[str, Kind] = {}
    for key, stored in before.items():
        if stored.dtype in FLOATING:
            module = module_name(key)
            if module:
                require_module_name(module, label)
            if module in updates:
                raise SheetbendError(f"{label} has both {module} and {module}.weight; save the model again")
            updates[module] = DifferenceUpdate(after[key], stored, f"adapter {label}: {key}")
            kinds[module] = _kind(key, stored.shape, linear)
    if not updates:
        raise SheetbendError(f"{label} has no floating tensor to compare with {base}; give two full checkpoints")
    dtypes = (FLOATING[stored.dtype] for stored in after.values() if stored.dtype in FLOATING)
    metadata = facts_without_config(dtypes, kinds, label)
    return Adapter(updates, name=name or _own_name(finetuned), base_model=str(base), metadata=metadata)


def _own_name(source: str | Path) -> str:
    """Return what a checkpoint is called: its folder, its file without the suffix, or its name on the hub."""
    if is_hub_id(source):
        return repository_name(str(source))
    path = Path(source)
    return path.stem if path.suffix in (".safetensors", *_PICKLES) else path.resolve().name


def _kind(key: str, shape: tuple[int, ...], linear: bool) -> Kind:
    """Return the kind of a parameter."""
    if len(shape) == 4 and key.endswith("weight"):
        return {"conv": list(shape[2:])}
    if len(shape) not in (1, 2):
        return {"shape": list(shape)}
    return "linear" if linear and len(shape) == 2 and key.endswith("weight") else "parameter"


def stored_tensors(source: str | Path) -> dict[str, Stored | Held]:
    """Return the tensors of a checkpoint by name; values are read when they are used.

    Args:
        source: As for `load_difference`.

    Raises:
        SheetbendError: It is no full checkpoint, or a file of ``torch.save`` that holds more than tensors.
    """
    path = Path(source)
    if is_hub_id(source):
        path = fetch(str(source), ("model*.safetensors", _INDEX_FILE))
        if not (is_file(path / _SINGLE_FILE) or is_file(path / _INDEX_FILE)):
            path = fetch(str(source), (_PICKLED_FILE,))
    if path.suffix == ".safetensors" and is_file(path):
        return _header(path)
    if path.suffix in _PICKLES and is_file(path):
        return _pickled(path)
    if is_file(path / _INDEX_FILE):
        return _sharded(path)
    if is_file(path / _SINGLE_FILE):
        return _header(path / _SINGLE_FILE)
    if is_file(path / _PICKLED_FILE):
        return _pickled(path / _PICKLED_FILE)
    if is_file(path / "adapter_config.json"):
        raise SheetbendError(f"{source} is an adapter, not a full checkpoint; load it as an adapter")
    problem = f"has neither {_SINGLE_FILE} nor {_INDEX_FILE}" if path.is_dir() else "does not exist"
    raise SheetbendError(f"{source} is no full checkpoint: it {problem}; save the model as safetensors")


def _pickled(path: Path) -> dict[str, Stored | Held]:
    """Return the tensors of a state dict that ``torch.save`` wrote."""
    tensors: dict[str, Stored | Held] = {}
    for key, value in read_pickle(path).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise SheetbendError(
                f"{path} holds {str(key)[:80]!r}, a {type(value).__name__} instead of a tensor; save the state dict "
                "alone, torch.save(model.state_dict(), path), or as safetensors"
            )
        tensors[key] = Held(plain_tensor(value, key, path))
    return tensors


def _header(path: Path) -> dict[str, Stored | Held]:
    """Return the tensors of one file."""
    with reading(path), safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: Stored(path, key, tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}


def _sharded(folder: Path) -> dict[str, Stored | Held]:
    """Return the tensors that the index of ``folder`` lists, each from its own shard."""
    index = folder / _INDEX_FILE
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise SheetbendError(f"{index} has no weight_map from tensor to file; download it again")
    shards: dict[str, dict[str, Stored | Held]] = {}
    tensors = {}
    for key, shard in places.items():
        if shard not in shards:
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise SheetbendError(f"{index} names the shard {shard!r}; it must be a .safetensors file beside it")
            shards[shard] = _header(folder / shard)
        if key not in shards[shard]:
            raise SheetbendError(f"{folder / shard} has no tensor {key}, but its index says so; download it again")
        tensors[key] = shards[shard][key]
    return tensors


def _restricted(
    after: dict[str, Stored | Held], before: dict[str, Stored | Held], modules: Sequence[str], label: str
) -> tuple[dict[str, Stored | Held], dict[str, Stored | Held]]:
    """Return the tensors whose module names end like one of ``modules``."""

    def fits(key: str, end: str) -> bool:
        name = module_name(key)
        return name == end or name.endswith(f".{end}")

    for end in modules:
        if not any(fits(key, end) for key in (*after, *before)):
            parts = sorted({module_name(key).rpartition(".")[2] for key in after})
            raise SheetbendError(f"modules names {end!r}, but {label} has no such tensor{did_you_mean(end, parts)}")

    def kept(tensors: dict[str, Stored | Held]) -> dict[str, Stored | Held]:
        return {key: stored for key, stored in tensors.items() if any(fits(key, end) for end in modules)}

    return kept(after), kept(before)


def _check_pair(after: dict[str, Stored | Held], before: dict[str, Stored | Held], label: str, base_label: str) -> None:
    """Raise unless both checkpoints have the same floating tensors and equal others, listing what differs."""
    way_out = "both must be checkpoints of one model (modules=[...] takes only some of it)"
    for holder, lacker, holder_label, lacker_label in (
        (before, after, base_label, label),
        (after, before, label, base_label),
    ):
        missing = [key for key, stored in holder.items() if key not in lacker and stored.dtype in FLOATING]
        if missing:
            raise SheetbendError(f"{lacker_label} has no {listed(missing)}, but {holder_label} has; {way_out}")
    both = {key: (stored, before[key]) for key, stored in after.items() if key in before}
    shaped = [f"{key} {one.shape} for {two.shape}" for key, (one, two) in both.items() if one.shape != two.shape]
    if shaped:
        raise SheetbendError(f"{label} has other shapes than {base_label}: {listed(shaped, 4)}; {way_out}")
    odd = [
        f"{key} {one.dtype}/{two.dtype}"
        for key, (one, two) in both.items()
        if (one.dtype in FLOATING) != (two.dtype in FLOATING) or "F8" in one.dtype + two.dtype
    ]
    if odd:
        raise SheetbendError(
            f"{label} and {base_label} store {listed(odd, 4)}; give checkpoints in float32, bfloat16 or float16"
        )
    changed = [
        key for key, (one, two) in both.items() if one.dtype not in FLOATING and not torch.equal(one.read(), two.read())
    ]
    if changed:
        raise SheetbendError(
            f"{label} has other {listed(changed)} than {base_label}; tensors of integers cannot be merged, leave them "
            "out with modules=[...]"
        )
    empty = [key for key, (one, _) in both.items() if 0 in one.shape and one.dtype in FLOATING]
    if empty:
        raise SheetbendError(f"{label} has empty tensors: {listed(empty)}; save it again from gathered weights")
