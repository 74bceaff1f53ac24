"""Every method in every space, against dense formulas, on random shapes, ranks and dtypes."""

from dataclasses import replace

import pytest
import reference
import torch
from builders import random_adapter
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from mergers import (
    TSV,
    Breadcrumbs,
    Cart,
    Core,
    Dare,
    Della,
    Full,
    Iso,
    IsoCTS,
    KnOTS,
    Mean,
    Merger,
    MetaGPT,
    SheetbendError,
    Star,
    TallMasks,
    TaskArithmetic,
    Ties,
    Truncate,
    Wudi,
)
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
    TSV(),
    TSV(rank_ratio=0.6),
    Cart(),
    Cart(rank_ratio=0.4, scaling=1.7, rounding="down"),
    IsoCTS(),
    IsoCTS(common_fraction=0.3),
    MetaGPT(),
    TallMasks(),
    TallMasks(threshold=1.1, agreement=1),
    Wudi("exact"),
    Wudi("adam", steps=4, lr=1e-2),
]
TRANSFORMS = [
    [Dare(0.3)],
    [Star(40)],
    [Star(70), Dare(0.5, seed=3)],
    [Breadcrumbs(0.3, 0.1)],
    [Breadcrumbs(0.0, 0.2), Star(90)],
    [Della(0.4, window=0.5, seed=1)],
]
FINISHES = [None, Iso(), Truncate(2)]


def merger_of(space, method, transforms=(), finish=None):
    """The composition, or None where it makes no sense."""
    try:
        return Merger(space, method, list(transforms), finish=finish)
    except SheetbendError as error:
        assert "singular values or norms" in str(error)
        return None


# Every method in every space alone; the steps around it in every space with methods of each kind.
CASES = [
    *(merger_of(space, method) for space in SPACES for method in METHODS),
    *(
        merger_of(space, method, transforms)
        for space in SPACES
        for method, transforms in zip([Mean(), Ties(0.5), TSV()] * 2, TRANSFORMS, strict=True)
    ),
    *(merger_of(space, TaskArithmetic(), transforms) for space in SPACES for transforms in TRANSFORMS[1:]),
    *(
        merger_of(space, method, finish=finish)
        for space in SPACES
        for finish in FINISHES[1:]
        for method in (TaskArithmetic(), Ties(0.8, trim="local"), TSV(), Cart())
    ),
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


quick = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much],
)


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


@pytest.mark.parametrize("merger", [case for case in CASES if case], ids=str)
@quick
@given(case=adapter_sets())
def test_merge_equals_the_dense_formula(merger, case):
    adapters, coefficients = case
    # One task alone has orthonormal V: small ones have entries of equal magnitude, and either may be trimmed.
    assume(len(adapters) > 1 or merger.space != UNSCALED)
    merger = replace(merger, coefficients=coefficients)
    try:
        expected = reference.merge(merger, adapters)
    except reference.IllPosedError:
        reject()
    merged = merger.merge(adapters).dense()
    assert list(merged) == list(expected)
    for module, values in expected.items():
        # An entry can be the difference of entries as large as the largest update.
        size = max(
            abs(c) * adapter[module].dense().abs().max() for c, adapter in zip(coefficients, adapters, strict=True)
        )
        torch.testing.assert_close(merged[module].double(), values, rtol=1e-4, atol=1e-4 * float(size))
