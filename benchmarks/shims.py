"""What lets published research code run where some of its imports are missing."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn


class Placeholder:
    """Stands for anything of a package that is not installed: it can be imported, not used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Say which package is missing."""
        raise ModuleNotFoundError(f"{self._name} is called, but its package is not installed")


class FrozenMap(dict):
    """An immutable, hashable dict: what mergekit needs of the package ``immutables``."""

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules out of nothing for the packages of ``stand_ins``."""

    def __init__(self, stand_ins: dict[str, dict[str, Any]]) -> None:
        self.stand_ins = stand_ins

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.stand_ins:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        vars(module).update(self.stand_ins[spec.name.partition(".")[0]])

        def attribute(name: str) -> Placeholder:
            if name.startswith("__"):  # what every module may lack: who goes through sys.modules asks for __file__
                raise AttributeError(name)
            return Placeholder(f"{spec.name}.{name}")

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def imported_from(clone: str, stand_ins: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Let ``import`` find the modules of ``clone``, and stand-ins for packages that are not installed.

    Args:
        clone: Folder, put first on the path.
        stand_ins: Package to the attributes that its stand-in has; all others are placeholders.

    Yields:
        The packages for which stand-ins are used.
    """
    missing = {name: names for name, names in stand_ins.items() if importlib.util.find_spec(name) is None}
    finder = _Finder(missing)
    sys.path.insert(0, clone)
    sys.meta_path.append(finder)  # last: whatever is installed wins
    try:
        yield sorted(missing)
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(clone)


def module_tree(tensors: dict[str, Tensor]) -> nn.Module:
    """Return a module whose ``state_dict`` has these names and tensors, and nothing else.

    >>> import torch
    >>> list(module_tree({"layers.0.q.weight": torch.zeros(1)}).state_dict())
    ['layers.0.q.weight']
    """
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return ``function``, which appends to ``seconds`` how long each call took."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


def linear_tree(modules: dict[str, Sequence[int]]) -> nn.Module:
    """Return a module with a linear layer of zeros, without bias, at each of these names.

    Args:
        modules: Name to (out, in).
    """
    root = nn.Module()
    for name, (out_features, in_features) in modules.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        linear = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=False)
        nn.init.zeros_(linear.weight)
        module.add_module(leaf, linear)
    return root
