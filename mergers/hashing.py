"""Hashes of tensors' values."""

import hashlib

import torch
from torch import Tensor


class Digest:
    """A sha256 over named tensors; the same for equal values in any floating dtype, layout and place.

    >>> one, two = Digest(), Digest()
    >>> one.add("A", torch.ones(2, 3))
    >>> two.add("A", torch.ones(3, 2, dtype=torch.bfloat16).T)
    >>> one.hexdigest() == two.hexdigest()
    True
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in the name, the shape, and the values as float32."""
        self._sha256.update(f"{name}\x1f{tuple(tensor.shape)}\x1f".encode())
        if tensor.numel():
            content = bytearray(4 * tensor.numel())
            torch.frombuffer(content, dtype=torch.float32).copy_(tensor.detach().to("cpu").flatten())
            self._sha256.update(content)

    def add_text(self, text: str) -> None:
        """Take in some text."""
        self._sha256.update(f"{text}\x1e".encode())

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits."""
        return self._sha256.hexdigest()
