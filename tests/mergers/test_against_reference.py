"""Every method in every space, against dense formulas, on random shapes, ranks and dtypes."""

import itertools

import pytest
import reference
import torch
from builders import random_adapter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mergers import Core, Dare, Full, Iso, KnOTS, Mean, Merger, Star, TaskArithmetic, Ties
from mergers.finishes.base import Finish
from mergers.methods.base import Method
from mergers.registry import registered
from mergers.spaces.base import Space
from mergers.transforms.base import Transform

UNSCALED = KnOTS(scale_by_singular_values=False)
SPACES = [Full(), KnOTS(), UNSCALED, KnOTS(cutoff=1e-5, relative_cutoff=False), KnOTS(concatenate="outputs"), Core()]
METHODS = [
    Mean(),
    TaskArithmetic(),
    Ties(),
    Ties(density=0.5, trim="local"),
    Ties(density=0.7, aggregate="sum", sign="counts"),
    Ties(density=1.0, aggregate="max"),
    Ties(density=0.4, trim="local", aggregate="max", sign="counts"),
]
TRANSFORMS = [[], [Dare(0.3)], [Star(40)], [Star(70), Dare(0.5, seed=3)]]
FINISHES = [None, Iso()]
CASES = [
    (space, method, transforms)
    for space, method, transforms in itertools.product(SPACES, METHODS, TRANSFORMS)
    if space != UNSCALED or not any(isinstance(transform, Star) for transform in transforms)
]


@pytest.mark.parametrize(
    ("package", "base", "tried", "known"),
    [
        ("mergers.spaces", Space, SPACES, reference.SPACES),
        ("mergers.methods", Method, METHODS, reference.METHODS),
        ("mergers.transforms", Transform, [t for chain in TRANSFORMS for t in chain], reference.TRANSFORMS),
        ("mergers.finishes", Finish, [f for f in FINISHES if f], reference.FINISHES),
    ],
)
def test_every_registered_class_has_a_reference_and_is_tried(package, base, tried, known):
    classes = registered(package, base)
    assert set(classes) == set(known)
    assert set(classes.values()) == {type(instance) for instance in tried}


@st.composite
def adapter_sets(draw):
    count = draw(st.integers(1, 4))
    modules = draw(st.integers(1, 3))
    size = st.integers(2, 9)
    shapes = {f"layers.{index}.proj": (draw(size), draw(size)) for index in range(modules)}
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    seed = draw(st.integers(0, 2**20))
    adapters = []
    for index in range(count):
        ranks = {module: draw(st.integers(1, 5)) for module in shapes}
        scale = draw(st.sampled_from([1.0, 0.25, 2.0]))
        adapters.append(random_adapter(f"task_{index}", shapes, ranks, seed + index, dtype, scale))
    coefficients = [draw(st.floats(-1, 2).filter(lambda c: abs(c) > 0.05)) for _ in range(count)]
    return adapters, coefficients


@pytest.mark.parametrize(("space", "method", "transforms"), CASES, ids=str)
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(case=adapter_sets())
def test_merge_equals_the_dense_formula(space, method, transforms, case):
    adapters, coefficients = case
    # One task alone has orthonormal V: small ones have entries of equal magnitude, and either may be trimmed.
    assume(len(adapters) > 1 or space != UNSCALED)
    merger = Merger(space, method, transforms, coefficients)
    merged = merger.merge(adapters).dense()
    expected = reference.merge(merger, adapters)
    assert list(merged) == list(expected)
    for module, values in expected.items():
        # An entry can be the difference of entries as large as the largest update.
        size = max(
            abs(c) * adapter[module].dense().abs().max() for c, adapter in zip(coefficients, adapters, strict=True)
        )
        torch.testing.assert_close(merged[module].double(), values, rtol=1e-4, atol=1e-4 * float(size))
