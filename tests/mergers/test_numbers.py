"""Numbers at the edge of what a computer holds: a finite result by definition, or an error that names the module."""

import math

import pytest
import reference
import torch
from builders import assert_same, random_adapter, random_adapters, write_peft_folder
from safetensors.torch import save_file
from test_properties import INVARIANT, METHODS, SPACES, UNSCALED, everywhere

import mergers.finishes.base
import mergers.transforms.base
from mergers import (
    Adapter,
    Breadcrumbs,
    Cart,
    Core,
    Dare,
    Della,
    DenseUpdate,
    Full,
    Iso,
    KnOTS,
    LowRankUpdate,
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
    load_adapter,
    save_merged,
)
from mergers.analysis import analyse
from mergers.registry import registered

SHAPES = {"layers.0.q": (6, 5), "layers.1.q": (4, 7)}
TRANSFORMS = [Dare(0.3), Della(0.3), Breadcrumbs(0.2, 0.1), Star(50)]
FINISHES = [Iso(), Truncate(2)]


def changed(adapter, change, only=None):
    """The adapter with each update changed, or that of one module."""
    updates = {m: change(u) if only in (None, m) else u for m, u in adapter.items()}
    return Adapter(updates, adapter.name, adapter.base_model)


def with_factors(A=lambda A: A, B=lambda B: B, scale=1.0):
    return lambda update: LowRankUpdate(A(update.A), B(update.B), update.scale * scale)


def first_twice(columns):
    return torch.cat([columns[:, :1]] * columns.shape[1], dim=1)


def one_of(change, **options):
    def make():
        first, *others = random_adapters(3, SHAPES, ranks=3, **options)
        return [changed(first, change), *others]

    return make


def all_of(change, **options):
    return lambda: [changed(adapter, change) for adapter in random_adapters(3, SHAPES, ranks=3, **options)]


def orthonormal(adapter, seed=None):
    """The adapter with all singular values one; a seed gives the same deltas by other factors."""

    def change(update):
        B, A = torch.linalg.qr(update.B).Q, torch.linalg.qr(update.A.T).Q.T
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            turn = torch.linalg.qr(torch.randn(len(A), len(A), generator=generator, dtype=torch.float64)).Q
            B, A = (B.double() @ turn).float(), (turn.T @ A.double()).float()
        return LowRankUpdate(A, B, update.scale)

    return changed(adapter, change)


def mixed_dtypes():
    dtypes = (torch.float16, torch.bfloat16, torch.float64)
    adapters = random_adapters(3, SHAPES, ranks=3)
    return [
        changed(a, with_factors(lambda A, d=dtype: A.to(d), lambda B, d=dtype: B.to(d)))
        for a, dtype in zip(adapters, dtypes, strict=True)
    ]


# What adapters may be like, and whether their merge has an answer in float32.
CASES = {
    "one is zero": (one_of(with_factors(scale=0.0)), True),
    "one has a zero A": (one_of(with_factors(A=torch.zeros_like)), True),
    "all are zero": (all_of(with_factors(scale=0.0)), True),
    "a module that nobody changed": (
        lambda: [changed(a, with_factors(scale=0.0), "layers.0.q") for a in random_adapters(3, SHAPES, ranks=3)],
        True,
    ),
    "B lacks rank": (one_of(with_factors(B=first_twice)), True),
    "A lacks rank": (one_of(with_factors(A=lambda A: first_twice(A.T).T)), True),
    "all lack rank": (all_of(with_factors(B=first_twice)), True),
    "twins": (lambda: [Adapter(random_adapters(1, SHAPES)[0], name, "base") for name in ("a", "b", "c")], True),
    "opposites": (
        lambda: [
            changed(Adapter(random_adapters(1, SHAPES)[0], n, "base"), with_factors(scale=s))
            for n, s in (("a", 1.0), ("b", -1.0))
        ],
        True,
    ),
    "equal singular values": (lambda: [orthonormal(a) for a in random_adapters(3, SHAPES, ranks=3)], True),
    "rank above both sides": (lambda: random_adapters(3, SHAPES, ranks=20), True),
    "denormal A": (one_of(with_factors(A=lambda A: A * 1e-40)), True),
    "denormal factors": (all_of(with_factors(A=lambda A: A * 1e-40, B=lambda B: B * 1e-30)), True),
    "denormal products": (all_of(with_factors(A=lambda A: A * 1e-20, B=lambda B: B * 1e-20)), True),
    "tiny scale": (one_of(with_factors(scale=1e-30)), True),
    "vanishing scale": (one_of(with_factors(scale=1e-300)), True),  # no float32, so that its task has no vote
    "far apart": (one_of(with_factors(scale=1e12)), True),
    "large": (all_of(with_factors(scale=1e12)), True),
    "squares overflow": (all_of(with_factors(scale=1e25)), None),
    "scale overflows": (one_of(with_factors(scale=1e39)), False),
    "scale of 1e300": (one_of(with_factors(scale=1e300)), False),
    "products overflow": (one_of(with_factors(A=lambda A: A * 1e25, B=lambda B: B * 1e25)), False),
    "mixed dtypes": (mixed_dtypes, True),
    "float16 at its limit": (
        one_of(with_factors(A=lambda A: A.clamp(-1, 1).half(), B=lambda B: (B * 6e4).clamp(-6e4, 6e4).half())),
        True,
    ),
}


def test_everything_registered_is_here():
    for package, base, here in (
        ("mergers.transforms", mergers.transforms.base.Transform, TRANSFORMS),
        ("mergers.finishes", mergers.finishes.base.Finish, FINISHES),
    ):
        assert {type(one) for one in here} == set(registered(package, base).values())


def finite_or_named(merger, case):
    """Merge: a finite result, or one line that names the module; return the result if there is one."""
    make, answer = CASES[case]
    try:
        merged = merger.merge(make()).dense()
    except SheetbendError as error:
        assert answer is not True, error
        assert "layers." in str(error) and "overflows" in str(error)
        return None
    assert answer is not False
    assert all(delta.isfinite().all() for delta in merged.values())
    return merged


@pytest.mark.parametrize("case", CASES)
@everywhere(METHODS)
def test_every_method_in_every_space(space, method, case):
    merger = Merger(space, method)
    merged = finite_or_named(merger, case)
    if merged is not None:
        again = merger.merge(CASES[case][0]()).dense()
        assert all(torch.equal(merged[module], again[module]) for module in merged)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("transforms", "finish"),
    [([one], None) for one in TRANSFORMS] + [([], one) for one in FINISHES] + [([Star(50), Dare(0.3)], Iso())],
    ids=str,
)
@pytest.mark.parametrize("space", [Full(), KnOTS(), Core()], ids=str)
def test_every_step(space, transforms, finish, case):
    finite_or_named(Merger(space, Ties(0.5) if transforms else Mean(), transforms, finish=finish), case)


PLAIN = ("one is zero", "one has a zero A", "B lacks rank", "A lacks rank", "tiny scale", "mixed dtypes")


@pytest.mark.parametrize("case", PLAIN)
@everywhere(
    [Mean(), TaskArithmetic(), MetaGPT(), Ties(1.0), Ties(0.5, trim="local"), Cart(), TallMasks()], None, SPACES[:2]
)
def test_edges_agree_with_the_slow_reference(space, method, case):
    adapters, merger = CASES[case][0](), Merger(space, method)
    try:
        expected = reference.merge(merger, adapters)
    except reference.IllPosedError:
        pytest.skip("the definition has more than one answer here")
    merged = merger.merge(adapters).dense()
    for module, delta in expected.items():
        scale = float(delta.abs().max()) or 1.0
        torch.testing.assert_close(merged[module].double() / scale, delta.double() / scale, rtol=1e-4, atol=1e-4)


def named(adapter, *names):
    return [Adapter(adapter, name, "base") for name in names]


ITSELF = [Mean(), MetaGPT(), Cart(), Wudi("exact"), Ties(1.0), Ties(1.0, "local", "max"), Ties(1.0, sign="counts")]


@pytest.mark.parametrize("count", [2, 3, 5])
@everywhere(ITSELF, None, [Full(), KnOTS(), Core()])
def test_equal_adapters_are_as_one(space, method, count):
    [adapter] = random_adapters(1, SHAPES)
    assert_same(Merger(space, method).merge(named(adapter, *"abcde"[:count])).dense(), adapter.dense())


@pytest.mark.parametrize("space", [Full(), KnOTS(), Core()], ids=str)
def test_equal_adapters_are_added_by_what_adds(space):
    [adapter] = random_adapters(1, SHAPES)
    expected = {module: 3 * delta for module, delta in adapter.dense().items()}
    for method in (TaskArithmetic(), TallMasks(), Ties(1.0, aggregate="sum")):
        assert_same(Merger(space, method).merge(named(adapter, *"abc")).dense(), expected)


def test_equal_adapters_in_ties_are_the_trimmed_one():
    """In full space the trim keeps the large entries, which all adapters have in common."""
    [adapter] = random_adapters(1, {"q": (20, 30)})
    delta = adapter.dense()["q"]
    limit = delta.abs().flatten().sort().values[600 - 180 - 1]
    expected = torch.where(delta.abs() >= limit, delta, torch.zeros_like(delta))
    assert_same(Merger("full", Ties(0.3)).merge(named(adapter, *"abc")).dense(), {"q": expected})


def test_in_core_space_equal_adapters_survive_any_trim():
    """Their coordinates are diagonal: a fifth of the entries is all there is."""
    [adapter] = random_adapters(1, {"q": (20, 30)}, ranks=2)
    assert_same(Merger("core", Ties(0.2)).merge(named(adapter, *"abc")).dense(), adapter.dense())


def test_opposite_adapters_cancel():
    [adapter] = random_adapters(1, SHAPES)
    pair = [Adapter(adapter, "a", "base"), changed(Adapter(adapter, "b", "base"), with_factors(scale=-1.0))]
    for space in ("full", "knots", "core"):
        for method in (Mean(), TaskArithmetic(), MetaGPT()):
            merged = Merger(space, method).merge(pair).dense()
            assert all(delta.abs().max() < 1e-5 for delta in merged.values())


# Without a cut among equal singular values, which would have to choose.
UNCUT = [method for method in INVARIANT if type(method).__name__ in ("Mean", "TaskArithmetic", "MetaGPT", "Wudi")]


@pytest.mark.parametrize("method", UNCUT, ids=str)
@pytest.mark.parametrize("space", [one for one in SPACES if one != UNSCALED], ids=str)
def test_equal_singular_values_do_not_matter_to_invariant_methods(space, method):
    """The same updates by other factors, whose singular vectors are any basis of the same subspace."""
    adapters = [orthonormal(adapter) for adapter in random_adapters(3, SHAPES, ranks=3)]
    others = [orthonormal(adapter, seed) for seed, adapter in enumerate(adapters)]
    assert_same({m: u.dense() for m, u in adapters[0].items()}, {m: u.dense() for m, u in others[0].items()})
    merger = Merger(space, method)
    assert_same(merger.merge(adapters).dense(), merger.merge(others).dense(), 1e-4)


@pytest.mark.parametrize("space", [KnOTS(), KnOTS(concatenate="outputs"), Core()], ids=str)
def test_equal_singular_values_decide_a_basis_of_the_bytes_alone(space):
    """TIES depends on the basis, of which equal singular values leave the choice: same bytes in, same bytes out."""
    block = torch.eye(6)
    adapters = [
        Adapter({"q": LowRankUpdate(block[3 * i : 3 * i + 3], block[:, 3 * i : 3 * i + 3])}, f"task_{i}", "base")
        for i in range(2)
    ]
    merger = Merger(space, Ties(0.5))
    first = merger.merge(adapters).content_hash()
    assert all(merger.merge(adapters).content_hash() == first for _ in range(3))
    assert merger.merge(adapters[::-1]).content_hash() == first


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", ["A", "B", "head"])
def test_what_is_not_finite_is_refused_by_name(tmp_path, value, dtype, part):
    tensors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3, dtype=dtype),
        "base_model.model.q.lora_B.weight": torch.ones(4, 2, dtype=dtype),
    }
    head = torch.ones(5, 4, dtype=dtype)
    (head if part == "head" else tensors[f"base_model.model.q.lora_{part}.weight"])[1, 1] = value
    folder = write_peft_folder(tmp_path / "pets", tensors)
    save_file({"score.weight": head}, folder / "head.safetensors")
    name = "its head score.weight" if part == "head" else f"q.lora_{part}"
    with pytest.raises(SheetbendError, match=f"adapter .*pets: {name} holds NaN or infinity"):
        load_adapter(folder)


def test_what_is_not_finite_in_memory_is_refused_by_name():
    good, bad = random_adapters(2, SHAPES)
    bad["layers.1.q"].B[0, 0] = math.nan
    for update in (bad["layers.1.q"], DenseUpdate(bad["layers.1.q"].dense())):
        bad._updates["layers.1.q"] = update
        for method in METHODS:
            with pytest.raises(SheetbendError, match=r"task_1: module layers.1.q holds NaN or infinity"):
                Merger("full", method).merge([good, bad])


@pytest.mark.parametrize(
    ("alpha", "outcome"),
    [(0, "zero"), (1e-320, "zero"), (1e-300, "zero"), (1e-30, "small"), (1e30, "large"), (1e39, None), (1e308, None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_of_any_size(tmp_path, alpha, outcome, dtype, rslora):
    """alpha / r is folded in by float32: what is too small is zero, what is too large is named."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 3, generator=generator).to(dtype),
        "base_model.model.q.lora_B.weight": torch.randn(4, 2, generator=generator).to(dtype),
    }
    folder = write_peft_folder(tmp_path / "pets", tensors, lora_alpha=alpha, use_rslora=rslora)
    adapters = [load_adapter(folder), random_adapter("cars", {"q": (4, 3)}, 2)]
    assert adapters[0]["q"].scale == (alpha / math.sqrt(2) if rslora else alpha / 2)
    if outcome is None:
        with pytest.raises(SheetbendError, match="q overflows"):
            Merger("knots", "mean").merge(adapters)
        return
    merged = Merger("full", "mean").merge(adapters).dense()["q"]
    product = (
        tensors["base_model.model.q.lora_B.weight"].double() @ tensors["base_model.model.q.lora_A.weight"].double()
    )
    expected = (product * adapters[0]["q"].scale + adapters[1].dense()["q"].double()) / 2
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", ["full", "knots"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scale_that_float16_cannot_hold(tmp_path, space, dtype):
    """Computed in float32, exactly; to be saved it needs a dtype that holds it, which the error says."""
    tensors = {
        "base_model.model.q.lora_A.weight": torch.full((2, 3), 2.0, dtype=dtype),
        "base_model.model.q.lora_B.weight": torch.full((4, 2), 300.0, dtype=dtype),
    }
    adapters = [load_adapter(write_peft_folder(tmp_path / name, tensors, lora_alpha=2000)) for name in ("pets", "cars")]
    merger, output = Merger(space, TaskArithmetic()), tmp_path / "merged"
    merged = merger.merge(adapters)
    expected = torch.full((4, 3), 2 * 1000 * 2 * 2 * 300.0)
    torch.testing.assert_close(merged.dense()["q"], expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)
    if dtype == torch.float16:
        with pytest.raises(
            SheetbendError, match=r"module q: its factors do not fit torch.float16; give dtype=torch.fl"
        ):
            save_merged(merger, adapters, output)
        assert not output.exists()
    save_merged(merger, adapters, output, dtype=torch.float32)
    torch.testing.assert_close(load_adapter(output).dense()["q"], expected)


def test_denormals_are_as_small_as_they_are():
    """A product below the smallest float32 is zero; one above it keeps its value, however small its factors."""
    A, B = torch.full((1, 3), 1e-30), torch.full((4, 1), 1e-30)
    lost = Adapter({"q": LowRankUpdate(A, B)}, "a", "base")
    kept = Adapter({"q": LowRankUpdate(A, B, 1e30)}, "b", "base")
    for space in ("full", "knots", "core"):
        assert not Merger(space, "mean").merge([lost]).dense()["q"].any()
    merged = Merger("full", "mean").merge([kept]).dense()["q"]
    torch.testing.assert_close(merged, torch.full((4, 3), 1e-30), rtol=1e-5, atol=0)


def test_inspect_says_what_overflows():
    adapters = random_adapters(2, SHAPES)
    adapters[0]._updates["layers.1.q"] = with_factors(scale=1e39)(adapters[0]["layers.1.q"])
    with pytest.raises(SheetbendError, match=r"layers.1.q overflows"):
        analyse(adapters)
    for change in (with_factors(scale=0.0), with_factors(B=first_twice), with_factors(A=lambda A: A * 1e-40)):
        first, second = random_adapters(2, SHAPES)
        found = analyse([changed(first, change), second])
        assert math.isfinite(found.norm("task_0")) and math.isfinite(found.norm("task_1"))
