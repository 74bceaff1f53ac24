"""What published implementations return for the same adapters."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mergers import Full, KnOTS, Mean, Merger, Star, TaskArithmetic, Ties, load_adapter

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "parity"

METHODS = {"sum": TaskArithmetic(), "mean": Mean(), "simple average": Mean(), "star then mean": Mean()}


def merger_of(case):
    """The Merger for a case, or None if it needs what is not here."""
    if case["space"] not in ("full", "knots") or case.get("isotropize"):
        return None
    if case["method"] == "ties":
        trim = "global" if case["trim"].startswith("global") else "local"
        method = Ties(density=case["density"], trim=trim, aggregate=case.get("aggregate", "mean"))
    elif case["method"] == "task_arithmetic":
        method = METHODS[case["aggregate"]]
    elif case["method"] in METHODS:
        method = METHODS[case["method"]]
    else:
        return None
    # Core Space's own KnOTS baseline merges V_i without the singular values.
    space = Full() if case["space"] == "full" else KnOTS(scale_by_singular_values=case["source"] == "KnOTS")
    transforms = [Star(eta=case["eta"])] if "eta" in case else []
    return Merger(space, method, transforms, coefficients=case.get("scaling", 1.0))


def covered_cases(folder):
    path = folder / "cases.json"
    if not path.exists():
        return []
    return [case for case in json.loads(path.read_text()) if merger_of(case)]


def check(folder, case):
    adapters = [load_adapter(path) for path in sorted((folder / case.get("adapters", "adapters")).iterdir())]
    merged = merger_of(case).merge(adapters).dense()
    expected = load_file(folder / "expected" / f"{case['name']}.safetensors")
    assert merged.keys() == expected.keys()
    for module, values in expected.items():
        error = (merged[module] - values).norm() / values.norm()
        assert error < 1e-5, f"{module}: relative error {error:.1e}"


@pytest.mark.parametrize("case", covered_cases(DATA), ids=lambda case: case["name"])
def test_published_result_here(case):
    check(DATA, case)


@pytest.mark.skipif(not SHARED.exists(), reason=f"no folder {SHARED} with the full set of published results")
@pytest.mark.parametrize("case", covered_cases(SHARED) or [None], ids=lambda case: case and case["name"])
def test_published_result_shared(case):
    check(SHARED, case)


def test_the_copied_cases_cover_both_spaces_and_all_methods():
    cases = covered_cases(DATA)
    assert len(cases) == len(list((DATA / "expected").iterdir())) == 6
    assert {case["space"] for case in cases} == {"full", "knots"}
    assert {case["source"] for case in cases} == {"KnOTS", "Core Space", "STAR"}
