"""Hostile input of every kind: accepted or refused in one line; nothing is run, lost, hung or written elsewhere.

Each input is made by its number, so that ``python -m tests.trust.fuzzing KIND --only NUMBER`` makes one again; without
``--only`` that command prints the table of docs.
"""

import pytest

from tests.trust.fuzzing.harness import ACCEPTED, CRASHED, REJECTED, Sandbox, attempt, sandbox_of
from tests.trust.fuzzing.kinds import all_kinds

KINDS = all_kinds()


def crashes(kind, folder, numbers):
    """The inputs of a kind that did harm, and how many were accepted and rejected."""
    counts = {ACCEPTED: 0, REJECTED: 0, CRASHED: 0}
    said = []
    with sandbox_of(folder) as sandbox:
        for number, outcome in kind.outcomes(sandbox, numbers):
            counts[outcome.verdict] += 1
            if outcome.verdict == CRASHED:
                said.append(f"{kind.name} {number}: {outcome.said}")
    return said, counts


# Some crafted archives are sparse tensors, which are accepted.
SPARSE = pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta")


@SPARSE
@pytest.mark.parametrize("name", KINDS)
def test_some_inputs(name, tmp_path):
    said, counts = crashes(KINDS[name], tmp_path, range(KINDS[name].fast))
    assert not said, "\n".join(said)
    assert sum(counts.values()) == KINDS[name].fast


@SPARSE
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_inputs(name, tmp_path):
    said, counts = crashes(KINDS[name], tmp_path, range(KINDS[name].count))
    print(f"\n{name}: {sum(counts.values())} tried, {counts[ACCEPTED]} accepted, {counts[REJECTED]} rejected")
    assert not said, "\n".join(said)
    assert counts[ACCEPTED] > 0, "not even a harmless input of this kind reaches its reader"
    assert counts[REJECTED] > 0 or name in ("caches", "run-links"), "nothing of this kind is refused"


def test_ten_thousand_are_tried():
    assert sum(kind.count for kind in KINDS.values()) >= 10_000


# The harness itself: what must not happen is noticed.


def unlink(path):
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda box: (box.outside / "more").write_text("x"), "forbidden: open"),
        (lambda box: unlink(box.outside / "precious"), "forbidden: os.remove"),
        (lambda box: (box.inputs / "x").mkdir(), "forbidden: os.mkdir"),
        (lambda box: __import__("os").system("true"), "forbidden: os.system"),
        (lambda box: __import__("subprocess").run(["true"], check=True), "forbidden: subprocess.Popen"),
        (lambda box: __import__("os").symlink("a", box.outside / "link"), "forbidden: os.symlink"),
        (lambda box: all(True for _ in iter(int, 1)), "hang of more than"),
        (lambda box: [].pop(), "IndexError"),
        (lambda box: bytearray(b"x" * 500 * 2**20), "more memory"),
        (lambda box: exec("raise SystemExit(1)"), "exit 1"),
    ],
)
def test_the_harness_notices(tmp_path, harm, words):
    with sandbox_of(tmp_path) as sandbox:
        outcome = attempt(lambda: harm(sandbox), sandbox, seconds=2)
    assert outcome.verdict == CRASHED and words in outcome.said


def test_the_harness_lets_pass_what_is_allowed(tmp_path):
    with sandbox_of(tmp_path) as sandbox:
        assert isinstance(sandbox, Sandbox)
        assert attempt(lambda: (sandbox.output / "x").write_text("x"), sandbox).verdict == ACCEPTED
