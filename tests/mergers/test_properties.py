"""What holds of merging whatever the method, or of every method of a kind."""

import pytest
import torch
from builders import assert_same, random_adapter, random_adapters
from hypothesis import given, settings
from hypothesis import strategies as st

import mergers.methods.base
from mergers import (
    TSV,
    Adapter,
    Breadcrumbs,
    Cart,
    Core,
    Dare,
    Della,
    DenseUpdate,
    Full,
    Iso,
    IsoCTS,
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
    Wudi,
)
from mergers.methods.base import Method
from mergers.registry import registered

UNSCALED = KnOTS(scale_by_singular_values=False)
SPACES = [Full(), KnOTS(), UNSCALED, KnOTS(concatenate="outputs"), Core()]
ADAM = Wudi(steps=3, lr=1e-3)
INVARIANT = [Mean(), TaskArithmetic(), MetaGPT(), TSV(), Cart(), IsoCTS(), Wudi("exact")]
ENTRYWISE = [Ties(), Ties(0.5, trim="local", aggregate="max"), Ties(sign="counts"), TallMasks(), ADAM]
METHODS = INVARIANT + ENTRYWISE


def everywhere(methods=METHODS, finishes=None, spaces=SPACES):
    """Each method in each space where it is allowed; with each finish if there are any."""
    cases = [
        (space, method, finish)
        for space in spaces
        for method in methods
        for finish in finishes or [None]
        if space != UNSCALED or not (method.needs_norms or finish)
    ]
    names = ("space", "method", "finish") if finishes else ("space", "method")
    return pytest.mark.parametrize(names, [case[: len(names)] for case in cases], ids=str)


def times(adapters, factor):
    return [Adapter({m: u.scaled(factor) for m, u in a.items()}, a.name, a.base_model) for a in adapters]


def test_every_registered_method_is_here():
    assert {type(method) for method in METHODS} == set(registered("mergers.methods", Method).values())


IDENTITIES = [Mean(), TaskArithmetic(), MetaGPT(), TSV(), Cart(), Wudi("exact"), Ties(1.0), TallMasks()]


@everywhere(IDENTITIES)
def test_one_adapter_with_coefficient_1_is_itself(space, method):
    [adapter] = random_adapters(1)
    assert_same(Merger(space, method).merge([adapter]).dense(), adapter.dense())


@everywhere()
def test_task_order_does_not_matter(space, method):
    adapters = random_adapters(4)
    coefficients = {adapter.name: 0.3 + index for index, adapter in enumerate(adapters)}
    merger = Merger(space, method, [Della(0.3)] if space == Full() else [], coefficients)
    assert merger.merge(adapters).content_hash() == merger.merge(adapters[::-1]).content_hash()


@everywhere([Mean(), TaskArithmetic(), MetaGPT(), IsoCTS(), Wudi("exact")], [None, Iso()], SPACES[1:])
def test_invariant_methods_agree_in_all_spaces(space, method, finish):
    adapters = random_adapters(3)
    coefficients = [0.2, -0.5, 1.5]
    full = Merger("full", method, coefficients=coefficients, finish=finish).merge(adapters)
    assert_same(Merger(space, method, coefficients=coefficients, finish=finish).merge(adapters).dense(), full.dense())


@pytest.mark.parametrize("eta", [20, 40, 90, 100])
def test_star_then_mean_is_the_same_in_knots_space(eta):
    """The columns of U are orthonormal, so coordinates have the singular values of the update itself."""
    adapters = random_adapters(3, ranks=3)
    full = Merger("full", "mean", [Star(eta)]).merge(adapters)
    assert_same(full.dense(), Merger("knots", "mean", [Star(eta)]).merge(adapters).dense())
    if eta == 20:
        assert all(update.rank == 3 for update in full.values()), "one direction a task"


@everywhere([method for method in METHODS if method not in (TallMasks(), ADAM)], [None, Iso()])
def test_coefficients_scale_the_result(space, method, finish):
    # Not of TALL-masks, where they change the masks, nor of Adam, whose steps are of a fixed length.
    adapters = random_adapters(3)
    once = Merger(space, method, coefficients=[0.5, 1.5, -0.25], finish=finish).merge(adapters).dense()
    thrice = Merger(space, method, coefficients=[1.5, 4.5, -0.75], finish=finish).merge(adapters).dense()
    assert_same(thrice, {module: 3 * values for module, values in once.items()}, 1e-4)


@everywhere([method for method in METHODS if method != ADAM])
def test_scaling_all_adapters_scales_the_result(space, method):
    adapters = random_adapters(3)
    transforms = [Breadcrumbs(0.2, 0.1), Della(0.3)] if method.entrywise else []
    merger = Merger(space, method, transforms)
    expected = {module: 4 * values for module, values in merger.merge(adapters).dense().items()}
    assert_same(merger.merge(times(adapters, 4.0)).dense(), expected, 1e-4)


@everywhere()
def test_the_scale_of_an_adapter_is_part_of_it(space, method):
    adapters = random_adapters(3, scale=0.25)
    folded = [Adapter({m: LowRankUpdate(u.A, u.B * 0.25) for m, u in a.items()}, a.name, "base") for a in adapters]
    merger = Merger(space, method, coefficients=0.7)
    assert merger.merge(adapters).content_hash() == merger.merge(folded).content_hash()
    other = merger.merge(random_adapters(3, scale=1.0))
    assert other.content_hash() != merger.merge(adapters).content_hash()


# In the basis of Core the inputs' rotation does not show, so there every method but for the steps of Adam commutes.
ROTATED = [(s, m) for s in SPACES if s not in (UNSCALED, Core()) for m in INVARIANT] + [
    (Core(), m) for m in (*INVARIANT, Ties(0.5), TallMasks())
]


@pytest.mark.parametrize(("space", "method"), ROTATED, ids=str)
@pytest.mark.parametrize("steps", [{}, {"transforms": [Star(70)], "finish": Iso()}], ids=["alone", "star-iso"])
def test_a_rotation_of_the_inputs_commutes(space, method, steps):
    adapters = random_adapters(3, {"layer": (7, 9)})
    generator = torch.Generator().manual_seed(5)
    Q = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    rotated = [
        Adapter({m: LowRankUpdate((u.A.double() @ Q).float(), u.B) for m, u in a.items()}, a.name, "base")
        for a in adapters
    ]
    merger = Merger(space, method, coefficients=[0.5, 1.0, 0.8], **steps)
    expected = {m: (values.double() @ Q).float() for m, values in merger.merge(adapters).dense().items()}
    assert_same(merger.merge(rotated).dense(), expected, 2e-4)


@everywhere()
def test_results_are_low_rank_where_the_merger_says_so(space, method):
    adapters = [random_adapter(f"task_{i}", {"layer": (12, 11)}, rank, seed=i) for i, rank in enumerate((1, 2, 3))]
    merger = Merger(space, method)
    update = merger.merge(adapters)["layer"]
    assert merger.low_rank == (space != Full() or not method.entrywise) == isinstance(update, LowRankUpdate)
    if merger.low_rank:
        assert update.rank <= 6


# Adam turns the rounding of gradients near zero into whole steps.
@pytest.mark.parametrize("method", [method for method in METHODS if method != ADAM], ids=str)
@pytest.mark.parametrize("steps", [{}, {"transforms": [Star(70)], "finish": Iso()}], ids=["alone", "star-iso"])
def test_dense_updates_give_what_low_rank_ones_do(method, steps):
    adapters = random_adapters(3, {"wide": (7, 12), "tall": (13, 8)}, ranks=3)
    dense = [Adapter({m: DenseUpdate(u.dense()) for m, u in a.items()}, a.name, "base") for a in adapters]
    merger = Merger("full", method, coefficients=[0.5, 1.0, 0.8], **steps)
    merged = merger.merge(dense)
    assert all(isinstance(update, DenseUpdate) for update in merged.values())
    assert_same(merged.dense(), merger.merge(adapters).dense(), 1e-4)


@everywhere()
def test_zero_adapters_give_zero(space, method):
    adapters = times(random_adapters(3), 0.0)
    for update in Merger(space, method).merge(adapters).dense().values():
        assert not update.any()


@everywhere(METHODS, [None, Iso()])
def test_a_zero_adapter_a_twin_and_lost_rank_give_defined_results(space, method, finish):
    first, second, third = random_adapters(3, {"layer": (6, 5)}, ranks=3)
    lame = {m: LowRankUpdate(torch.cat([u.A[:1]] * 3), u.B) for m, u in second.items()}  # rank 1 in rank 3's clothes
    adapters = [
        first,
        Adapter(first, "twin", "base"),
        Adapter(lame, "lame", "base"),
        *times([third], 0.0),
    ]
    merged = Merger(space, method, finish=finish).merge(adapters).dense()["layer"]
    assert merged.isfinite().all()
    assert merged.any()
    if method in (Cart(), Wudi("exact"), Mean()):
        twins = adapters[:2]
        assert_same(Merger(space, method).merge(twins).dense(), first.dense(), 1e-4)


def test_twins_of_tsv_are_as_one():
    adapter = random_adapter("one", {"layer": (8, 9)}, 3)
    merged = Merger("full", TSV()).merge([adapter, Adapter(adapter, "two", "base")])
    assert_same(merged.dense(), adapter.dense())


@everywhere()
def test_vectors_are_merged_too(space, method):
    vectors = [torch.tensor([1.0, 2.0, -3.0]), torch.tensor([3.0, 1.0, -1.0])]
    adapters = [
        Adapter({"bias": DenseUpdate(v), "layer": a["layers.0.q"]}, a.name, "base")
        for v, a in zip(vectors, random_adapters(2), strict=True)
    ]
    merged = Merger(space, method, coefficients=[0.5, 1.5]).merge(adapters).dense()["bias"]
    assert merged.shape == (3,)
    assert merged.isfinite().all()
    if isinstance(method, TSV | Cart | IsoCTS | Wudi):
        torch.testing.assert_close(merged, (0.5 * vectors[0] + 1.5 * vectors[1]) / 2)


ranks = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@pytest.mark.parametrize("space", SPACES, ids=str)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), ranks=ranks, seed=st.integers(0, 999))
def test_spaces_reproduce_each_update(space, rows, columns, ranks, seed):
    updates = [
        random_adapter("a", {"m": (rows, columns)}, rank, seed + index, scale=0.5 * (index + 1))["m"]
        for index, rank in enumerate(ranks)
    ]
    encoded = space.encode(updates)
    size = max(float(update.dense().abs().max()) for update in updates)
    for update, coordinates in zip(updates, encoded.coordinates, strict=True):
        torch.testing.assert_close(encoded.decode(coordinates).dense(), update.dense(), rtol=1e-5, atol=3e-6 * size)
        if space.keeps_singular_values:
            assert coordinates.squared_norm() == pytest.approx(update.squared_norm(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("method", [Ties(), Ties(0.5, trim="local"), TallMasks(), TaskArithmetic()], ids=str)
@pytest.mark.parametrize("transforms", [[Dare(0.4)], [Della(0.4)], [Breadcrumbs(0.3, 0.2)]], ids=str)
def test_bytes_do_not_depend_on_the_size_of_blocks(method, transforms, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    adapters = [
        Adapter({**a, "bias": DenseUpdate(torch.randn(33, generator=generator).round(decimals=1))}, a.name, "base")
        for a in random_adapters(3, {"layer": (9, 7)})
    ]
    merger = Merger("full", method, transforms)
    whole = merger.merge(adapters).content_hash()
    monkeypatch.setattr(mergers.methods.base, "BLOCK_ENTRIES", 14)
    assert merger.merge(adapters).content_hash() == whole


@pytest.mark.parametrize("count", [1, 7, 60])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.0), (0.5, 0.1), (0.85, 0.1), (0.0, 0.5)])
@pytest.mark.parametrize("tied", [False, True])
def test_breadcrumbs_drops_exact_counts(count, beta, gamma, tied):
    values = torch.ones(count, 1) if tied else torch.randperm(count)[:, None] - 0.5 * count - 0.25
    update = Breadcrumbs(beta, gamma).transform(DenseUpdate(values), "task", "module")
    kept = update.dense().nonzero()[:, 0]
    smallest, largest = int(beta * count), int(gamma * count)
    assert len(kept) == count - smallest - largest
    order = range(count) if tied else values.abs().flatten().argsort().tolist()
    assert sorted(kept.tolist()) == sorted(list(order)[smallest : count - largest])
    assert torch.equal(update.dense()[kept], values[kept].float())


def test_della_spares_large_entries_and_keeps_the_mean():
    row = torch.cat([torch.full((400,), 1.0), torch.full((400,), 3.0)])
    values = torch.stack([row] * 400)
    update = Della(0.5, window=0.6).transform(DenseUpdate(values), "task", "module")
    dropped = (update.dense() == 0).float().mean(dim=0)
    assert dropped[:400].mean() == pytest.approx(0.65, abs=0.01)
    assert dropped[400:].mean() == pytest.approx(0.35, abs=0.01)
    assert dropped[0] == pytest.approx(0.8, abs=0.07)
    assert dropped[-1] == pytest.approx(0.2, abs=0.07)
    torch.testing.assert_close(update.dense().mean(), values.mean(), rtol=0.01, atol=0)
    again = Della(0.5, window=0.6).transform(DenseUpdate(values), "task", "module")
    assert torch.equal(update.dense(), again.dense())
    other = Della(0.5, window=0.6).transform(DenseUpdate(values), "other", "module")
    assert not torch.equal(update.dense(), other.dense())


def test_own_models_of_tasks():
    adapters = random_adapters(3)
    merger = Merger("full", TallMasks(threshold=0.5))
    total = Merger("full", "task_arithmetic").merge(adapters).dense()
    votes = {module: torch.zeros_like(values) for module, values in total.items()}
    for adapter in adapters:
        own = merger.merge(adapters[::-1], for_task=adapter.name).dense()
        for module, values in own.items():
            delta = adapter[module].dense()
            wanted = delta.abs() > 0.5 * (total[module] - delta).abs()
            torch.testing.assert_close(values, total[module] * wanted)
            votes[module] += wanted
    assert_same(merger.merge(adapters).dense(), {m: total[m] * (votes[m] >= 2) for m in total})


@pytest.mark.parametrize(
    ("method", "task", "words"),
    [
        (TallMasks(), "tsak_1", ["for_task is 'tsak_1'", "task_0, task_1", "did you mean 'task_1'"]),
        (Ties(), "task_1", ["Ties makes one model for all tasks", "TallMasks"]),
    ],
)
def test_own_models_are_refused_by_name(method, task, words):
    with pytest.raises(SheetbendError) as caught:
        Merger("full", method).merge(random_adapters(2), for_task=task)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("method", [method for method in METHODS if method.needs_norms], ids=str)
def test_what_needs_norms_is_refused_where_there_are_none(method):
    with pytest.raises(SheetbendError, match=r"acts on singular values or norms.*another space"):
        Merger(UNSCALED, method)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TSV(rank_ratio=0), ["TSV rank_ratio is 0", "(0, 1]"]),
        (lambda: IsoCTS(1.1), ["common_fraction is 1.1", "[0, 1]"]),
        (lambda: Cart(rank_ratio=2), ["Cart rank_ratio is 2", "(0, 1]"]),
        (lambda: Cart(scaling=float("inf")), ["Cart scaling is inf"]),
        (lambda: Cart(rounding="near"), ["Cart rounding is 'near'", "up, down"]),
        (lambda: TallMasks(threshold=-1), ["threshold is -1"]),
        (lambda: TallMasks(agreement=0), ["agreement is 0", "from 1 on"]),
        (lambda: Wudi(solver="sgd"), ["Wudi solver is 'sgd'", "adam, exact"]),
        (lambda: Wudi(steps=-1), ["Wudi steps is -1"]),
        (lambda: Wudi(lr=0), ["Wudi lr is 0"]),
        (lambda: Breadcrumbs(beta=1), ["Breadcrumbs beta is 1", "[0, 1)"]),
        (lambda: Breadcrumbs(0.9, 0.1), ["Breadcrumbs gamma is 0.1", "1 - beta"]),
        (lambda: Della(1.0), ["Della drop_rate is 1.0", "[0, 1)"]),
        (lambda: Della(0.1, window=0.3), ["Della window is 0.3", "smaller"]),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(SheetbendError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_wudi_steps_lead_to_the_exact_solution():
    adapters = times(random_adapters(3, {"layer": (6, 5)}), 0.01)
    exact = Merger("full", Wudi("exact")).merge(adapters)["layer"].dense()
    start = Merger("full", "task_arithmetic").merge(adapters)["layer"].dense()
    near = Merger("full", Wudi(steps=3000, lr=1e-4)).merge(adapters)["layer"].dense()
    assert (near - exact).norm() < 0.1 * (start - exact).norm()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_bytes_do_not_depend_on_the_number_of_threads(method):
    adapters = random_adapters(3, {f"layers.{index}": (160, 150) for index in range(4)}, ranks=20)
    merger = Merger("core", method, finish=None if method.entrywise else Iso())
    before = torch.get_num_threads()
    hashes = set()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            hashes.add(merger.merge(adapters).content_hash())
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("method", [Ties(1.0), Ties(1.0, "local"), Ties(1.0, sign="counts")], ids=str)
def test_a_task_without_an_update_has_no_vote(space, method):
    """Its coordinates are zero, not rounding that counts among the tasks that agree."""
    adapters = random_adapters(3, {"layer": (7, 9)})
    idle = Adapter({"layer": LowRankUpdate(torch.zeros(2, 9), torch.zeros(7, 2))}, "idle", "base")
    with_idle = Merger(space, method).merge([*adapters, idle]).dense()
    assert_same(with_idle, Merger(space, method).merge(adapters).dense(), 1e-4)


@pytest.mark.parametrize("space", [KnOTS(), Core()], ids=str)
def test_tasks_in_directions_of_their_own_do_not_meet(space):
    """Nothing of one stands where the other has anything, so TIES keeps both whole."""
    eye = torch.eye(8)
    scales = torch.tensor([4.0, 2.0, 1.0])
    adapters = [
        Adapter(
            {"layer": LowRankUpdate(eye[3 * i : 3 * i + 3], (5 - i) * eye[:, 3 * i : 3 * i + 3] * scales)}, n, "base"
        )
        for i, n in enumerate("ab")
    ]
    expected = sum(adapter.dense()["layer"] for adapter in adapters)
    assert_same(Merger(space, Ties(1.0)).merge(adapters).dense(), {"layer": expected})
