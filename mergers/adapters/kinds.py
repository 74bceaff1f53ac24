"""What kind of parameter an update belongs to, and how the update lies in it.

An update is a matrix (out, in) or a vector; parameters lie in other ways. ``adapter.metadata["kinds"]`` says for each
module which of these it is, as plain values:

- ``"linear"``: the weight is (out, in), or (in, out) in transformers' ``Conv1D``.
- ``"in_proj"``: the stacked weights (3 d, d) of query, key and value in torch's ``MultiheadAttention``; the update goes
  by the name of the parameter, ``in_proj_weight``, and lies as it does.
- ``"embedding"``: the weight is (number of embeddings, dimension), the update its transpose: a look-up is a product
  with a one-hot column.
- ``{"conv": [height, width]}``: the weight is (out, in, height, width), the update is flattened to
  (out, in * height * width); one number for a one-dimensional convolution, three for a three-dimensional one.
- ``"parameter"``: a difference of two checkpoints; the update lies as the parameter does.
- ``{"shape": [...]}``: the same, of a parameter with no or more than two dimensions, flattened to
  (first dimension, rest).
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Kind = str | dict[str, list[int]]


def kind_of(metadata: Mapping[str, Any], module: str) -> Kind:
    """Return the kind of ``module``; linear where the adapter does not say."""
    return (metadata.get("kinds") or {}).get(module, "linear")


def lying_shape(shape: tuple[int, ...], kind: Kind, transposed: bool = False) -> tuple[int, ...]:
    """Return the shape of the parameter to which an update of ``shape`` and ``kind`` belongs.

    >>> lying_shape((8, 27), {"conv": [3, 3]})
    (8, 3, 3, 3)
    """
    if isinstance(kind, dict):
        if "shape" in kind:
            return tuple(kind["shape"])
        kernel = kind["conv"]
        return (shape[0], shape[1] // math.prod(kernel), *kernel)
    return tuple(reversed(shape)) if _turned(kind, transposed) else tuple(shape)


def as_it_lies(delta: Tensor, kind: Kind, transposed: bool = False) -> Tensor:
    """Return the update as its parameter lies.

    Args:
        delta: (out, in), or a vector.
        kind: What the parameter is.
        transposed: Whether a linear weight is stored (in, out).
    """
    if isinstance(kind, dict):
        return delta.reshape(lying_shape(tuple(delta.shape), kind))
    return delta.T if _turned(kind, transposed) else delta


def as_update_lies(weight: Tensor, shape: tuple[int, ...], kind: Kind, transposed: bool = False) -> Tensor:
    """Return a parameter as its update of ``shape`` lies: the inverse of `as_it_lies`, a view where that is one."""
    return weight.T if _turned(kind, transposed) else weight.reshape(shape)


def _turned(kind: Kind, transposed: bool) -> bool:
    """Return whether the parameter is the transpose of its update."""
    return kind == "embedding" or (transposed and kind == "linear")


def fits_lora(kind: Kind) -> bool:
    """Return whether a LoRA adapter can hold an update of this kind."""
    return "conv" in kind if isinstance(kind, dict) else kind != "parameter"


def same_kind(one: Kind, other: Kind) -> bool:
    """Return whether updates of both kinds may be merged: equal ones, or a difference of checkpoints with a LoRA."""
    return one == other or {str(one), str(other)} in ({"linear", "parameter"}, {"in_proj", "parameter"})
