"""Properties of merging, and what Merger refuses."""

import threading
from dataclasses import dataclass

import pytest
import torch
from builders import SHAPES, assert_same, random_adapter, random_adapters

from mergers import (
    Adapter,
    Dare,
    DenseUpdate,
    Full,
    KnOTS,
    LowRankUpdate,
    Mean,
    Merger,
    SheetbendError,
    Star,
    TaskArithmetic,
    Ties,
)
from mergers.spaces.base import Encoded


def test_coefficients_apply_after_the_election():
    adapters = random_adapters(2)
    uniform = Merger("full", Ties(density=1.0, aggregate="sum")).merge(adapters).dense()
    weighted = Merger("full", Ties(density=1.0, aggregate="sum"), coefficients=[1.0, 0.0]).merge(adapters).dense()
    first = adapters[0].dense()
    for module, values in weighted.items():
        agrees = first[module].sign() == uniform[module].sign()
        torch.testing.assert_close(values, torch.where(agrees, first[module], 0.0))


def test_zero_sum_takes_the_sign_of_the_total():
    def adapter(name, *rows):
        return Adapter({f"m{i}": DenseUpdate(torch.tensor([row])) for i, row in enumerate(rows)}, name)

    # m0: sums to zero in its first entry, total negative there, positive over both modules
    pair = [adapter("a", [2.0, -1.0], [3.0, 3.0]), adapter("b", [-2.0, -1.0], [3.0, 3.0])]
    everywhere = Merger("full", Ties(density=1.0, trim="global")).merge(pair).dense()
    by_module = Merger("full", Ties(density=1.0, trim="local")).merge(pair).dense()
    assert everywhere["m0"].tolist() == [[2.0, -1.0]]
    assert by_module["m0"].tolist() == [[-2.0, -1.0]]


def test_dare_masks_depend_on_seed_task_and_module_only():
    adapters = random_adapters(3)
    merger = Merger("full", "task_arithmetic", [Dare(0.5, seed=7)])
    alone = [merger.merge([adapter]).dense() for adapter in adapters]
    together = merger.merge(adapters).dense()
    assert_same(together, {module: sum(each[module] for each in alone) for module in together})
    other_seed = Merger("full", "task_arithmetic", [Dare(0.5, seed=8)]).merge(adapters).dense()
    assert any(not torch.equal(together[module], other_seed[module]) for module in together)
    # Same factors, other names: other masks
    twin = Adapter(adapters[0], "twin")
    assert any(not torch.equal(alone[0][m], dense) for m, dense in merger.merge([twin]).dense().items())
    module = "layers.0.q"
    renamed = merger.merge([Adapter({"other": adapters[0][module]}, adapters[0].name)]).dense()["other"]
    assert not torch.equal(renamed, alone[0][module])


def test_dare_keeps_the_expected_share_and_rescales():
    values = torch.ones(200, 200)
    adapter = Adapter({"m": DenseUpdate(values)}, "t")
    merged = Merger("full", "mean", [Dare(0.75)]).merge([adapter]).dense()["m"]
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert merged.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("space", ["full", "knots"])
def test_bytes_do_not_depend_on_the_number_of_threads(space):
    # Large enough for BLAS to split: with its own threads, the bytes in knots space would differ here.
    shapes = {f"layers.{index}": (512, 496) for index in range(2)}
    adapters = random_adapters(3, shapes, ranks=48)
    merger = Merger(space, Ties(density=0.3))
    before = torch.get_num_threads()
    hashes = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            hashes.add(merger.merge(adapters).content_hash())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1


def test_what_stays_factored():
    adapters = random_adapters(3)
    for merger, low_rank in [
        (Merger("full", "mean"), True),
        (Merger("full", "task_arithmetic", ["star"]), True),
        (Merger("full", "ties"), False),
        (Merger("full", "mean", [Dare(0.1)]), False),
        (Merger("knots", "ties", [Dare(0.1)]), True),
    ]:
        merged = merger.merge(adapters)
        assert merger.low_rank is low_rank
        assert all(isinstance(update, LowRankUpdate if low_rank else DenseUpdate) for update in merged.values())
        if low_rank:
            assert all(update.rank <= 6 for update in merged.values())


def test_knots_result_has_the_rank_of_the_span():
    """Two adapters with one B: the joint update has rank 2, not 4."""
    first, second = random_adapters(2)
    second = Adapter({m: LowRankUpdate(A=u.A, B=first[m].B) for m, u in second.items()}, "second")
    merged = Merger("knots", Ties(density=0.5)).merge([first, second])
    assert {update.rank for update in merged.values()} == {2}


def test_dense_updates_and_vectors_go_through_both_spaces():
    generator = torch.Generator().manual_seed(0)
    adapters = [
        Adapter(
            {
                "wide": DenseUpdate(torch.randn(4, 9, generator=generator)),
                "tall": DenseUpdate(torch.randn(9, 4, generator=generator)),
                "bias": DenseUpdate(torch.randn(5, generator=generator)),
            },
            name,
        )
        for name in "abc"
    ]
    expected = {m: sum(adapter[m].delta for adapter in adapters) / 3 for m in adapters[0]}
    for space in ("full", "knots"):
        assert_same(Merger(space, "mean").merge(adapters).dense(), expected)
        starred = Merger(space, "mean", [Star(100)]).merge(adapters).dense()
        assert_same(starred, expected)


def test_a_space_of_ones_own_that_is_cheap_is_used():
    @dataclass(frozen=True)
    class Doubled(Full):
        def encode(self, updates):
            return Encoded([update.scaled(2.0) for update in updates])

    adapters = random_adapters(2)
    twice = {module: 2 * values for module, values in Merger("full", "mean").merge(adapters).dense().items()}
    assert_same(Merger(Doubled(), "mean").merge(adapters).dense(), twice)


def test_updates_of_zeros_merge_to_zeros():
    adapters = [Adapter({"m": LowRankUpdate(A=torch.randn(2, 4), B=torch.zeros(3, 2))}, name) for name in "ab"]
    for space in ("full", "knots"):
        for method in (Mean(), Ties(), Ties(trim="local", aggregate="max")):
            merged = Merger(space, method, [Star()]).merge(adapters).dense()["m"]
            assert torch.equal(merged, torch.zeros(3, 4))


def test_gradients_are_not_recorded():
    adapter = Adapter(
        {"m": LowRankUpdate(A=torch.randn(2, 4, requires_grad=True), B=torch.randn(3, 2, requires_grad=True))}, "a"
    )
    for space in ("full", "knots"):
        assert not Merger(space, "mean").merge([adapter]).dense()["m"].requires_grad


@pytest.mark.parametrize(
    ("name", "cls"),
    [("ties", Ties), ("Ties", Ties), ("task_arithmetic", TaskArithmetic), ("Task-Arithmetic", TaskArithmetic)],
)
def test_methods_by_name(name, cls):
    assert Merger(method=name).method == cls()


def test_spaces_and_transforms_by_name():
    merger = Merger(space="KNOTS", transforms=["star"])
    assert merger.space == KnOTS()
    assert merger.transforms == [Star()]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Merger(method="tise"), ["unknown method 'tise'", "TSV, Cart, IsoCTS, Mean", "did you mean 'Ties'"]),
        (lambda: Merger(space="knot"), ["unknown space 'knot'", "Full, KnOTS", "did you mean 'KnOTS'"]),
        (lambda: Merger(transforms=["dare"]), ["'dare' needs drop_rate", "mergers.Dare"]),
        (lambda: Merger(transforms="star"), ["transforms is 'star'", "list"]),
        (lambda: Merger(method=3), ["method is 3", "Ties"]),
        (lambda: Merger(coefficients=float("nan")), ["coefficients", "nan"]),
        (lambda: Merger(coefficients="0.3"), ["coefficients", "'0.3'"]),
        (lambda: Ties(density=0), ["density is 0", "(0, 1]"]),
        (lambda: Ties(density=20), ["density is 20", "(0, 1]"]),
        (lambda: Ties(density=float("nan")), ["density is nan"]),
        (lambda: Ties(trim="locally"), ["trim is 'locally'", "global, local"]),
        (lambda: Ties(aggregate="median"), ["aggregate is 'median'", "mean, sum, max"]),
        (lambda: Ties(sign="majority"), ["sign is 'majority'", "values, counts"]),
        (lambda: Dare(1.0), ["drop_rate is 1.0", "[0, 1)"]),
        (lambda: Star(0), ["eta is 0", "(0, 100]"]),
        (lambda: KnOTS(cutoff=-1.0), ["cutoff is -1.0"]),
        (lambda: KnOTS(cutoff=1.0), ["cutoff is 1.0", "below 1"]),
        (
            lambda: Merger(KnOTS(scale_by_singular_values=False), transforms=[Star()]),
            ["Star(eta=40.0)", "singular values", "scale_by_singular_values=True"],
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(make, words):
    with pytest.raises(SheetbendError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("coefficients", "words"),
    [
        ([0.1, 0.2], ["2 numbers for 3 tasks", "task_0, task_1, task_2"]),
        ({"task_0": 1.0, "task_1": 1.0}, ["no number for task 'task_2'"]),
        ({"task_0": 1.0, "task_1": 1.0, "tsak_2": 1.0}, ["unknown task 'tsak_2'", "did you mean 'task_2'"]),
    ],
)
def test_coefficients_must_fit_the_tasks(coefficients, words):
    with pytest.raises(SheetbendError) as caught:
        Merger(coefficients=coefficients).merge(random_adapters(3))
    for word in words:
        assert word in str(caught.value)


def other(**changes):
    options = {"shapes": SHAPES, "ranks": 2, "seed": 9, "base_model": "base", **changes}
    return random_adapter("svhn", **options)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([], ["no adapters"]),
        ([Adapter({}, "empty")], ["adapter empty", "no modules"]),
        ([*random_adapters(1), *random_adapters(1)], ["two adapters are named 'task_0'"]),
        (
            [*random_adapters(1, path="runs/mnist"), other(base_model="other", path="runs/svhn")],
            ["adapter runs/svhn", "'other'", "runs/mnist", "'base'", "same_base"],
        ),
        (
            [*random_adapters(1), other(shapes={**SHAPES, "layers.0.q": (6, 9)})],
            ["adapter svhn: module layers.0.q is (6, 9), but task_0 has (6, 5)", "one base model"],
        ),
        (
            [*random_adapters(1), other(shapes={"layers.0.q": (6, 5)})],
            ["adapter svhn: has no module layers.0.v, layers.1.q", "task_0"],
        ),
        (
            [*random_adapters(1), other(shapes={**SHAPES, "head": (6, 5)})],
            ["adapter task_0: has no module head, but svhn has"],
        ),
        ([*random_adapters(1), other(fan_in_fan_out=True)], ["adapter svhn: fan_in_fan_out"]),
    ],
)
def test_adapters_that_do_not_fit_are_refused_in_one_line(adapters, words):
    with pytest.raises(SheetbendError) as caught:
        Merger().merge(adapters)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_base_names_may_be_missing_or_declared_the_same():
    adapters = [*random_adapters(1), other(base_model=None), random_adapter("c", SHAPES, 2, base_model="copy")]
    assert Merger().merge(adapters[:2]).base_model == "base"
    with pytest.raises(SheetbendError, match="'copy'"):
        Merger().merge(adapters)
    assert Merger().merge(adapters, same_base=True).base_model == "base"


def test_a_dense_result_is_refused_before_the_work_and_when_saved(tmp_path):
    merger = Merger("full", "ties")
    with pytest.raises(SheetbendError, match=r"Ties in space Full gives dense.*rank=.*full model"):
        merger.require_low_rank()
    Merger("knots", "ties", [Dare(0.5)]).require_low_rank()
    with pytest.raises(SheetbendError, match=r"gives dense.*rank=.*full model"):
        merger.merge(random_adapters(2)).save(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("coefficient", [1e39, 1e300])
def test_a_merge_that_overflows_is_refused(method, coefficient):
    update = LowRankUpdate(torch.ones(2, 4), torch.ones(3, 2))
    with pytest.raises(SheetbendError, match="layer overflows"):
        Merger("full", method, coefficients=coefficient).merge([Adapter({"layer": update}, name="a")])


def test_factors_that_do_not_fit_the_dtype_are_refused(tmp_path):
    update = LowRankUpdate(torch.ones(2, 4), 1e6 * torch.ones(3, 2))
    merged = Merger().merge([Adapter({"layer": update}, name="a")])
    with pytest.raises(SheetbendError, match=r"do not fit torch\.float16"):
        merged.save(tmp_path / "out", dtype=torch.float16)
    with pytest.raises(SheetbendError, match=r"dtype is torch\.int8"):
        merged.save(tmp_path / "out", dtype=torch.int8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trim", ["global", "local"])
def test_ties_that_the_coefficients_would_hide_are_broken_all_the_same(trim):
    one = Adapter({"m": DenseUpdate(torch.tensor([[2.0, -1.0, -1.0]]))}, "one")
    two = Adapter({"m": DenseUpdate(torch.tensor([[-2.0, -1.0, -1.0]]))}, "two")
    merged = Merger("full", Ties(density=1.0, trim=trim, aggregate="sum"), coefficients=[0.0, 1.0]).merge([one, two])
    assert merged.dense()["m"].tolist() == [[-2.0, -1.0, -1.0]]


def test_streams_that_overlap_leave_torchs_threads_as_they_were():
    adapters = random_adapters(2)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        one, two = Merger().stream(adapters), Merger().stream(adapters)
        next(one), next(two)
        list(one)
        list(two)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused():
    for device in ("nonsense", "meta"):
        with pytest.raises(SheetbendError, match=f"device is '{device}'"):
            Merger().merge(random_adapters(2), device=device)
    adapters = random_adapters(2)
    assert_same(
        Merger("knots", "ties").merge(adapters, device="cpu").dense(), Merger("knots", "ties").merge(adapters).dense()
    )


@pytest.mark.parametrize("sign", ["values", "counts"])
def test_progress_is_told_by_the_thread_that_asks(sign):
    """Opposite adapters tie in every entry, so that signs are counted, in a pass of its own, while merging."""
    [one] = random_adapters(1)
    two = Adapter({module: update.scaled(-1.0) for module, update in one.items()}, "other")
    threads = set()
    Merger("full", Ties(density=1.0, sign=sign)).merge(
        [one, two], progress=lambda *_: threads.add(threading.get_ident())
    )
    assert threads == {threading.get_ident()}


def test_coefficients_are_shown_as_they_are_given():
    assert (
        str(Merger(coefficients={"cars": 0.6, "pets": 0.3})) == "Mean, in Full space, coefficients cars 0.6, pets 0.3"
    )
    assert str(Merger(coefficients=[0.6, 1])) == "Mean, in Full space, coefficients 0.6, 1"
    assert str(Merger()) == "Mean, in Full space"
