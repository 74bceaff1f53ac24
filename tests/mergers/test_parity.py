"""What published implementations return for the same adapters."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergers import (
    TSV,
    Adapter,
    Cart,
    Core,
    DenseUpdate,
    Full,
    Iso,
    KnOTS,
    Mean,
    Merger,
    MetaGPT,
    Star,
    TallMasks,
    TaskArithmetic,
    Ties,
    load_adapter,
)

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "parity"

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no folder {SHARED} with the full set of results")


def method_of(case):
    match case["method"]:
        case "ties":
            trim = "global" if case["trim"].startswith("global") else "local"
            return Ties(density=case["density"], trim=trim, aggregate=case.get("aggregate", "mean"))
        case "task_arithmetic":
            return {"sum": TaskArithmetic(), "mean": Mean()}[case["aggregate"]]
        case "sum":
            return TaskArithmetic()
        case "mean" | "simple average" | "star then mean":
            return Mean()
        case "cart":
            return Cart(case["cart_pruning_rank"], case["cart_scaling_coeffs"])
        case "tsv":
            return TSV()
        case "TALL-masks consensus":
            return TallMasks(threshold=case["lambda_"], agreement=case["k"])
        case "MetaGPT":
            return MetaGPT()
    raise KeyError(case["method"])


def merger_of(case):
    # Core Space's own KnOTS baseline merges V_i without the singular values.
    knots = KnOTS(scale_by_singular_values=case["source"] == "KnOTS")
    return Merger(
        {"full": Full(), "knots": knots, "core": Core()}[case["space"]],
        method_of(case),
        [Star(eta=case["eta"])] if "eta" in case else [],
        coefficients=case.get("alpha", case.get("scaling", 1.0)),
        finish=Iso() if case.get("isotropize") else None,
    )


def cases_of(folder):
    path = folder / "cases.json"
    return json.loads(path.read_text()) if path.exists() else []


def rank_of(matrix):
    s = torch.linalg.svdvals(matrix)
    return int((s > 1e-4 * s[0]).sum())


def without_arbitrary_directions(expected, merged):
    """The published Iso gives null directions of the merged matrix the mean singular value too, with arbitrary signs.

    Return ``expected`` without these, at the level that the mean has without them.
    """
    rank = rank_of(merged)
    U, _, Vh = torch.linalg.svd(merged, full_matrices=False)
    kept = U[:, :rank] @ U[:, :rank].T @ expected @ Vh[:rank].T @ Vh[:rank]
    return kept * rank_of(expected) / rank


def check(folder, case):
    adapters = [load_adapter(path) for path in sorted((folder / case.get("adapters", "adapters")).iterdir())]
    merged = merger_of(case).merge(adapters).dense()
    expected = load_file(folder / "expected" / f"{case['name']}.safetensors")
    assert merged.keys() == expected.keys()
    adjusted = []
    for module, values in expected.items():
        if case.get("isotropize") and rank_of(merged[module]) < rank_of(values):
            values = without_arbitrary_directions(values, merged[module])
            adjusted.append(module)
        error = (merged[module] - values).norm() / values.norm()
        assert error < 1e-5, f"{module}: relative error {error:.1e}"
    # In this case alone, trimming leaves rows of zeros.
    assert len(adjusted) == (2 if case["name"] == "core_repo-core-ties_topK50-iso" else 0)


@pytest.mark.parametrize("case", cases_of(DATA), ids=lambda case: case["name"])
def test_published_result_here(case):
    check(DATA, case)


@needs_shared
@pytest.mark.parametrize("case", cases_of(SHARED) or [None], ids=lambda case: case and case["name"])
def test_published_result_shared(case):
    check(SHARED, case)


@needs_shared
def test_no_published_result_is_left_out():
    assert len(cases_of(SHARED)) == len(list((SHARED / "expected").iterdir())) == 52


def test_the_copied_cases_cover_all_spaces_and_methods():
    cases = cases_of(DATA)
    assert {case["name"] for case in cases} == {path.stem for path in (DATA / "expected").iterdir()}
    assert {case["space"] for case in cases} == {"full", "knots", "core"}
    assert {case["source"] for case in cases} == {"KnOTS", "Core Space", "STAR"}
    assert {type(method_of(case)) for case in cases} == {TSV, Cart, Mean, MetaGPT, TallMasks, TaskArithmetic, Ties}


FULL_RANK = {
    "CART": lambda case: Merger(method=Cart(case["rank_ratio"], scaling=case["prior"], rounding="down")),
    "TSV": lambda case: Merger(method=TSV(), coefficients=case["prior"]),
    "TA": lambda case: Merger(method=TaskArithmetic(), coefficients=case["prior"]),
    "AVG": lambda case: Merger(method=Mean(), coefficients=case["prior"]),
}


def check_full_rank(folder, case):
    """AdaRank's static merges of whole checkpoints.

    It decomposes attention and MLP weights alone; its other matrices are flat vectors here, which we average or add as
    it does.
    """
    tensors = load_file(folder / "adarank_models.safetensors")
    base = {name.removeprefix("base."): value for name, value in tensors.items() if name.startswith("base.")}

    def update(name, delta):
        decomposed = delta.ndim == 2 and name.startswith(("attn", "mlp")) and "bias" not in name
        return DenseUpdate(delta if decomposed else delta.flatten())

    adapters = [
        Adapter({name: update(name, tensors[f"{task}.{name}"] - value) for name, value in base.items()}, task)
        for task in ("task0", "task1", "task2")
    ]
    merged = FULL_RANK[case["method"]](case).merge(adapters).dense()
    expected = load_file(folder / f"{case['name']}.safetensors")
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        change = values - base[name]
        error = (merged[name].reshape(change.shape) - change).norm() / change.norm()
        assert error < 1e-5, f"{name}: relative error {error:.1e}"


def static_cases(folder):
    path = folder / "adarank_cases.json"
    return [case for case in json.loads(path.read_text()) if "static" in case["name"]] if path.exists() else []


@pytest.mark.parametrize("case", static_cases(DATA / "adarank"), ids=lambda case: case["name"])
def test_full_rank_result_here(case):
    check_full_rank(DATA / "adarank", case)


@needs_shared
@pytest.mark.parametrize("case", static_cases(SHARED / "adarank") or [None], ids=lambda case: case and case["name"])
def test_full_rank_result_shared(case):
    check_full_rank(SHARED / "adarank", case)


def test_all_static_full_rank_cases_are_here():
    assert {case["method"] for case in static_cases(DATA / "adarank")} == set(FULL_RANK)
