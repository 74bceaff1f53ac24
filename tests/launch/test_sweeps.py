"""Many merged models in few sweeps: how many memory holds; searches and analyses test what is measured."""

import math
from types import SimpleNamespace

import torch

from launch.sweeps import Sweeps
from mergers import Full, Merger
from tests.mergers.builders import random_adapters


def test_room_is_counted_for_the_weights_that_a_merge_takes():
    adapters = random_adapters(3, ranks=2)
    dense = sum(one.shape[0] * one.shape[1] for one in adapters[0].values())

    def sweeps(branches):
        base = SimpleNamespace(parameters=lambda: iter([torch.zeros(1, dtype=torch.bfloat16)]))
        model = SimpleNamespace(
            adapters=lambda: adapters,
            merges_as_branches=branches,
            model=SimpleNamespace(get_base_model=lambda: base),
        )
        trainer = SimpleNamespace(callbacks=[], strategy=SimpleNamespace(root_device=torch.device("cpu")))
        return Sweeps(trainer, model, None, "val")

    shapes = [one.shape for one in adapters[0].values()]
    factored = sum(min(math.prod(shape), min(6, *shape) * sum(shape)) for shape in shapes)
    assert sweeps(False).bytes_of(Merger(Full(), "mean")) == 2 * dense
    assert sweeps(True).bytes_of(Merger(Full(), "mean")) == 2 * factored
    assert sweeps(True).bytes_of(Merger(Full(), "ties")) == 2 * dense
    assert sweeps(False).room(10**15) == 1 < sweeps(False).room(10**6)
