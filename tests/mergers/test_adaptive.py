"""Learned masks and coefficients, against autograd through every task's own product and the published code."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from mergers import Adapter, Cart, DenseUpdate, KnOTS, Merger, SheetbendError, TaskArithmetic, load_adapter
from mergers.adaptive import AdaRank
from mergers.adaptive.adarank import MASKED
from mergers.cache import AlignmentCache
from mergers.functional.masked import Directions, masked_sum
from mergers.methods import TSV
from tests.mergers.builders import assert_same, random_adapters
from tests.mergers.test_parity import DATA, SHARED, needs_shared


def dense_adapters(count=3, seed=0):
    """Full-rank updates of two matrices, and of a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"h.0.attn.q": (6, 5), "h.0.mlp.fc": (4, 7), "h.0.norm": (6,), "embed": (9, 4)}
    return [
        Adapter({m: DenseUpdate(torch.randn(s, generator=generator)) for m, s in shapes.items()}, name=f"task_{i}")
        for i in range(count)
    ]


def random_state(merge, seed=0):
    """Logits of either sign, and coefficients, both to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(merge.sizes), generator=generator)
    coefficients = 0.5 + torch.rand(len(merge.parts), len(merge.adapters), generator=generator)
    return logits.requires_grad_(), coefficients.requires_grad_()


def merged_deltas(merge, logits, coefficients):
    """What is added to a base of zeros, by module, differentiable."""
    deltas = {}
    pieces = zip(merge.parts.items(), logits.split(merge.sizes), coefficients, strict=True)
    for (module, part), own, weights in pieces:
        origin = part.origin(torch.zeros(merge.adapters[0][module].shape))
        deltas[module] = part.beyond_origin().weight(origin, own, weights, merge.settings.temperature)
    return deltas


def straight_through(s, logits, temperature):
    p = torch.sigmoid(logits / temperature)
    return p * s + (((p > 0.5).float() - p) * s).detach()


def reference_deltas(settings, adapters, logits, coefficients, sizes):
    """The definition: each task's U diag(s~) V under autograd, from dense updates in float64."""
    deltas = {}
    for index, (module, own) in enumerate(zip(adapters[0], logits.split(sizes), strict=True)):
        tasks = [adapter[module].dense().double() for adapter in adapters]
        mean = sum(tasks) / len(tasks)
        origin = mean if settings.start == "cart" else torch.zeros_like(mean)
        tasks = [task - origin for task in tasks]
        weights = coefficients[index].double()
        if not len(own):
            deltas[module] = origin + sum(w * t for w, t in zip(weights, tasks, strict=True))
            continue
        total = origin
        for weight, task, mask in zip(weights, tasks, own.double().chunk(len(tasks)), strict=True):
            U, s, Vh = torch.linalg.svd(task, full_matrices=False)
            s = s[: len(mask)]
            masked = straight_through(s, mask, settings.temperature)
            total = total + weight * (U[:, : len(mask)] * masked @ Vh[: len(mask)])
        deltas[module] = total
    return deltas


@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
@pytest.mark.parametrize("adapters", [dense_adapters(), random_adapters(3, ranks=2)], ids=["dense", "lora"])
@pytest.mark.parametrize("learn", ["both", "masks", "coefficients"])
def test_merged_weights_and_gradients_are_those_of_the_definition(start, adapters, learn):
    settings = AdaRank(start, temperature=3.0, learn=learn)
    merge = settings.prepare(adapters)
    logits, coefficients = random_state(merge)
    logits.requires_grad_(learn != "coefficients")
    coefficients.requires_grad_(learn != "masks")
    ours = merged_deltas(merge, logits, coefficients)
    theirs = reference_deltas(settings, adapters, logits, coefficients, merge.sizes)
    assert_same({m: d.double() for m, d in ours.items()}, theirs)
    probes = [torch.randn(d.shape, generator=torch.Generator().manual_seed(7)) for d in ours.values()]
    leaves = [leaf for leaf in (logits, coefficients) if leaf.requires_grad]
    for deltas in (ours, theirs):
        deltas["loss"] = sum((d * p).sum() for d, p in zip(deltas.values(), probes, strict=True))
    got = torch.autograd.grad(ours["loss"], leaves)
    expected = torch.autograd.grad(theirs["loss"], leaves)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    if learn != "coefficients":
        assert logits.numel() == sum(merge.sizes) and got[0].abs().min() > 0  # of directions that are off too


def test_masked_sum_has_the_gradient_of_its_coefficients_and_is_linear_in_them():
    generator = torch.Generator().manual_seed(0)
    B, A = (torch.randn(1100, size, generator=generator).double() for size in (3, 4))
    directions = Directions(B, A, torch.arange(2).repeat_interleave(550))
    logits = torch.randn(1100, generator=generator).double()
    coefficients = torch.tensor([0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: masked_sum(logits, c, directions, 10.0), (coefficients,))
    origin = torch.randn(3, 4, generator=generator).double()
    expected = origin
    for coefficient, own in zip(coefficients, (slice(0, 550), slice(550, 1100)), strict=True):
        on = logits[own] > 0
        expected = expected + coefficient * (B[own][on].T @ A[own][on])
    assert torch.allclose(masked_sum(logits, coefficients, directions, 10.0, origin), expected)
    assert not masked_sum(-logits.abs(), coefficients, directions, 10.0).any()


@pytest.mark.parametrize(
    ("settings", "merger"),
    [
        (AdaRank("task_arithmetic", coefficient=0.4), Merger("full", TaskArithmetic(), coefficients=0.4)),
        (AdaRank("task_arithmetic", "knots", coefficient=0.4), Merger("full", TaskArithmetic(), coefficients=0.4)),
        (AdaRank("cart", coefficient=1.5, rank_ratio=0.5), Merger("core", Cart(0.5, 1.5, "down"))),
        (AdaRank("tsv", coefficient=1.0), Merger("full", TSV())),
    ],
    ids=str,
)
def test_what_learning_begins_with_is_the_static_merge(settings, merger):
    adapters = random_adapters(3, ranks=2)
    merge = settings.prepare(adapters)
    start = merge.merged(merge.first_logits(), merge.first_coefficients())
    assert_same(start.dense(), merger.merge(adapters).dense())
    assert all(type(update).__name__ == "LowRankUpdate" for update in start.values())


@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
def test_knots_directions_are_rows_of_the_shared_coordinates(start):
    """Task i's direction j is column j of U times row j of its coordinates, whatever the mask."""
    adapters = random_adapters(3, ranks=2)
    merge = AdaRank(start, "knots").prepare(adapters)
    logits, coefficients = random_state(merge)
    ours = merged_deltas(merge, logits, coefficients)
    for index, (module, part) in enumerate(merge.parts.items()):
        encoded = KnOTS().encode([adapter[module] for adapter in adapters])
        rows = [update.dense() for update in encoded.coordinates]
        mean = sum(rows) / len(rows)
        origin = mean if start == "cart" else torch.zeros_like(mean)
        masks = (logits.split(merge.sizes)[index] > 0).float().split(list(part.counts))
        total = origin + sum(
            c * m[:, None] * (row - origin) for c, m, row in zip(coefficients[index], masks, rows, strict=True)
        )
        torch.testing.assert_close(ours[module], encoded.left @ total, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "dense"),
    [(AdaRank(start), dense) for start in ("task_arithmetic", "cart", "tsv") for dense in (False, True)]
    + [(AdaRank("cart", "knots"), False), (AdaRank("cart", leave_out="layers.1"), False)],
    ids=str,
)
def test_the_merge_in_the_end_is_the_one_that_was_learned(settings, dense):
    merge = settings.prepare(dense_adapters() if dense else random_adapters(3, ranks=2))
    logits, coefficients = random_state(merge)
    merged = merge.merged(logits, coefficients)
    assert_same(merged.dense(), {m: d.detach() for m, d in merged_deltas(merge, logits, coefficients).items()})
    if not dense:
        assert max(update.rank for update in merged.values()) <= 6
    kept = merge.kept(logits)
    assert sum(map(sum, kept.kept)) == (logits > 0).sum() and sum(map(sum, kept.directions)) == len(logits)
    assert kept.share == pytest.approx(float((logits > 0).float().mean()))
    assert list(kept.modules) == [name for name, size in zip(merge.parts, merge.sizes, strict=True) if size]


def test_no_direction_or_all_can_be_kept(tmp_path):
    merge = AdaRank().prepare(random_adapters(2, ranks=2))
    logits, coefficients = merge.first_logits(), merge.first_coefficients()
    assert not any(delta.any() for delta in merge.merged(-logits.abs(), coefficients).dense().values())
    merge.merged(-logits.abs(), coefficients).save(tmp_path / "none")
    assert not any(delta.any() for delta in load_adapter(tmp_path / "none").dense().values())
    merge.merged(logits, coefficients).save(tmp_path / "all")
    assert_same(load_adapter(tmp_path / "all").dense(), merge.merged(logits, coefficients).dense())


def test_initial_ratio_counts_the_directions_that_there_are():
    lora = random_adapters(3, ranks=4, shapes={"q": (20, 30)})
    for settings, expected in [
        (AdaRank(rank_ratio=0.5), [2, 2, 2]),  # of r
        (AdaRank("cart", rank_ratio=0.5), [6, 6, 6]),  # of the sum of the ranks
        (AdaRank("cart", "knots", rank_ratio=0.25), [3, 3, 3]),
        (AdaRank(rank_ratio=0.1), [1, 1, 1]),  # at least one
    ]:
        merge = settings.prepare(lora)
        assert merge.kept(merge.first_logits()).kept == (tuple(expected),)


def test_decompositions_are_cached(tmp_path):
    cache = AlignmentCache(tmp_path)
    for settings in (AdaRank("cart"), AdaRank("tsv"), AdaRank("cart", "knots")):
        adapters = random_adapters(3, ranks=2)
        first, again = (settings.prepare(adapters, cache.encoder(settings.decomposition)) for _ in range(2))
        logits, coefficients = random_state(first)
        one, other = (merge.merged(logits, coefficients).dense() for merge in (first, again))
        assert all(torch.equal(one[module], other[module]) for module in one)
    assert (cache.hits, cache.misses) == (9, 9)


def test_what_is_masked_and_what_keeps_the_base():
    names = {
        "transformer.resblocks.0.attn.in_proj_weight": True,
        "encoder.layers.3.mlp.fc1": True,
        "encoder.layer.0.attention.self.query": True,
        "encoder.layer.0.output.dense": True,
        "encoder.layer.0.intermediate.dense": True,
        "h.0.attn.c_attn": True,
        "block.0.layer.0.SelfAttention.q": True,
        "block.0.layer.1.DenseReluDense.wo": True,
        "conv1": False,
        "proj": False,
        "pooler.dense": False,
        "embeddings.word_embeddings": False,
    }
    assert {name: bool(re.search(MASKED, name)) for name in names} == names
    adapters = dense_adapters()
    merge = AdaRank(leave_out="embed|norm").prepare(adapters)
    assert list(merge.parts) == ["h.0.attn.q", "h.0.mlp.fc"]
    around_mean = AdaRank("cart", leave_out="embed|norm").prepare(adapters)
    logits, coefficients = random_state(around_mean)
    deltas, merged = merged_deltas(around_mean, logits, coefficients), around_mean.merged(logits, coefficients)
    for name in ("embed", "h.0.norm"):
        mean = sum(adapter[name].dense() for adapter in adapters) / 3
        torch.testing.assert_close(deltas[name], mean)
        torch.testing.assert_close(merged[name].dense(), mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "carts"}, "start is 'carts'; known: task_arithmetic, cart, tsv"),
        ({"start": "tsv", "space": "knots"}, "use space full"),
        ({"rank_ratio": 0.0}, "rank_ratio is 0.0; give a fraction"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"coefficient": float("nan")}, "coefficient is nan; give one of at most"),
        ({"masked": "("}, "masked '(' is no regular expression"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(SheetbendError, match=re.escape(message)):
        AdaRank(**settings)


def test_adapters_that_do_not_fit_are_refused():
    with pytest.raises(SheetbendError, match=r"for LoRA adapters, but h\.0\.attn\.q has a full-rank update"):
        AdaRank(space="knots").prepare(dense_adapters())
    with pytest.raises(SheetbendError, match="leaves nothing to merge"):
        AdaRank(leave_out=".").prepare(dense_adapters())
    with pytest.raises(SheetbendError, match=r"masked 'atn' finds no matrix .* learn coefficients"):
        AdaRank(masked="atn").prepare(dense_adapters())
    assert not any(AdaRank(masked="atn", learn="coefficients").prepare(dense_adapters()).sizes)


# The published code, on full-rank models.


def adarank_cases():
    cases = []
    for folder, marks in ((DATA, ()), (SHARED, (needs_shared,))):
        path = folder / "adarank" / "adarank_cases.json"
        for case in json.loads(path.read_text()) if path.exists() else []:
            if "initial_rank_ratio" in case and (path.parent / f"{case['name']}-init.safetensors").exists():
                cases.append(pytest.param(path.parent, case, marks=marks, id=f"{folder.name}-{case['name']}"))
    return cases


def models_of(folder):
    """The published parity's models as adapters, and its base."""
    tensors = load_file(folder / "adarank_models.safetensors")
    base = {name.removeprefix("base."): t for name, t in tensors.items() if name.startswith("base.")}
    adapters = [
        Adapter({name: DenseUpdate(tensors[f"task{i}.{name}"] - base[name]) for name in base}, name=f"task{i}")
        for i in range(3)
    ]
    return base, adapters


@pytest.mark.parametrize(("folder", "case"), adarank_cases())
def test_states_and_gradients_are_those_of_the_published_code(folder, case):
    base, adapters = models_of(folder)
    settings = AdaRank(
        {"TA": "task_arithmetic", "CART": "cart"}[case["method"]],
        coefficient=case["prior"],
        rank_ratio=case["initial_rank_ratio"],
        temperature=case["mask_temperature"],
    )
    merge = settings.prepare(adapters)
    first = merged_deltas(merge, merge.first_logits(), merge.first_coefficients())
    for name, expected in load_file(folder / f"{case['name']}-init.safetensors").items():
        torch.testing.assert_close(base[name] + first[name], expected, rtol=1e-5, atol=1e-5)

    published = load_file(folder / f"{case['name']}-perturbed.safetensors")
    probe = load_file(folder / "adarank_probe.safetensors")
    masks = [published.get(f"mask_logit.{name}", torch.zeros(0)).flatten() for name in merge.parts]
    logits = torch.cat(masks).requires_grad_()
    coefficients = torch.stack([published[f"coefficient.{name}"] for name in merge.parts]).requires_grad_()
    assert [len(mask) for mask in masks] == merge.sizes
    merged = merged_deltas(merge, logits, coefficients)
    sum((probe[name] * (base[name] + delta)).sum() for name, delta in merged.items()).backward()
    grads = dict(zip(merge.parts, logits.grad.split(merge.sizes), strict=True))
    for index, name in enumerate(merge.parts):
        torch.testing.assert_close(base[name] + merged[name], published[f"merged.{name}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            coefficients.grad[index], published[f"coefficient_grad.{name}"], rtol=1e-5, atol=1e-5
        )
        if merge.sizes[index]:
            expected = published[f"mask_logit_grad.{name}"].flatten()
            torch.testing.assert_close(grads[name], expected, rtol=1e-5, atol=1e-5)
