"""A file that vanishes under the run, or between two: one line or the right results, never others."""

import random
import shutil

import pytest

from tests.trust.disks import DELETED, goes_on, one_line, remove
from tests.trust.kills import reference
from tests.trust.snapshots import differences, half_written
from tests.trust.works import WORKS, start

MOMENTS = 5
TRIES = 10
ADAPTER = "run/adapters/hue"
# What is removed while a command runs. Inputs come back before it is given again.
UNDER_THE_RUN = [
    ("merge", "adapters/cars"),
    ("merge", "adapters/*/adapter_config.json"),
    ("merge", "cache/alignments/*.safetensors"),
    ("fit", "run/config.yaml"),
    ("fit", "run/adapters/hue"),
    ("fit", "run/checkpoints/last.ckpt"),
    ("fit", "run/tensorboard"),
    ("fit", "cache"),
    ("test", ADAPTER),
    ("search", ADAPTER),
    ("search", "cache/alignments/*.safetensors"),
    ("search", "run/searches/grid/candidates.json"),
    ("adapt", ADAPTER),
    ("adapt", "run/adaptations/adarank-ta/checkpoints"),
    ("prepare", "hub/models--openai--clip/blobs/*.incomplete"),
    ("prepare", "cache"),
]
# What is removed after a run has ended, and given again then.
BETWEEN_RUNS = [
    ("merge", "cache"),
    ("fit", "run/checkpoints"),
    ("fit", "run/adapters/hue"),
    ("fit", "run/tensorboard"),
    ("fit", "run/results.json"),
    ("fit", "run/config.yaml"),
    ("search", "run/searches/grid/candidates.csv"),
    ("search", "run/searches/grid/candidates.json"),
    ("adapt", "run/adaptations/adarank-ta/merged"),
    ("adapt", "run/adaptations/adarank-ta/checkpoints"),
    ("prepare", "hub/*/snapshots"),
    ("prepare", "cache/prepared"),
]

NOT_REMADE = ("cache", "run/tensorboard")  # of work that is finished


def deleted_under_the_run(server, base, tally, name, pattern, count):
    work, row = WORKS[name], tally(name, f"deleted under the run: {pattern}")
    whole = reference(server, work, base)
    generator = random.Random(name + pattern)
    for _ in range(TRIES * count):
        number = generator.randrange(len(whole.ended.changes))
        folder = start(work, base)
        ended = server.run(work.job(folder, pattern, act_before=(number, "tests.trust.disks:delete")))
        if not any(unit.startswith(DELETED) for unit in ended.units):
            continue  # it was not there yet, or no more
        faults = _faults(work, folder, ended, whole)
        shutil.copytree(base / "templates" / work.slug, folder, symlinks=True, dirs_exist_ok=True)  # inputs come back
        faults += _faults(work, folder, server.run(work.job(folder)), whole)
        row.add(f"before {number}, {whole.ended.changes[number]}", faults)
        if row.injected == count:
            break
    assert row.injected == count, f"{pattern} was there {row.injected} times"
    assert not row.lost, "\n".join(row.lost)


def _faults(work, folder, ended, whole):
    faults = [f"half-written: {line}" for line in half_written(folder)]
    return faults + (one_line(ended) if ended.status else _right_where_it_is(work.left(folder), whole.contents))


def _right_where_it_is(left, expected):
    """Return what is wrong of a run that has ended all the same: what it left must be right, as far as it is there."""
    return [line for line in differences(left, expected) if " is missing" not in line and "/events" not in line]


def deleted_between_runs(server, base, tally, name, pattern):
    work, row = WORKS[name], tally(name, f"deleted between runs: {pattern}")
    whole = reference(server, work, base)
    folder = base / "work"  # as the reference left it
    assert remove(folder, pattern)
    ended = server.run(work.job(folder))
    faults = [f"half-written: {line}" for line in half_written(folder)]
    if ended.status:
        faults += one_line(ended)
    else:
        lines = differences(work.left(folder), whole.contents)
        faults += [line for line in lines if not (pattern in NOT_REMADE and line.startswith(pattern))]
    row.add(pattern, faults)
    assert not row.lost, "\n".join(row.lost)


@pytest.mark.parametrize(("name", "pattern"), UNDER_THE_RUN[:1])
def test_an_input_vanishes_under_a_quick_command(server, base, tally, name, pattern):
    deleted_under_the_run(server, base, tally, name, pattern, MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), UNDER_THE_RUN)
def test_files_vanish_under_the_run(server, base, tally, name, pattern):
    deleted_under_the_run(server, base, tally, name, pattern, MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), BETWEEN_RUNS)
def test_files_vanish_between_runs(server, base, tally, name, pattern):
    deleted_between_runs(server, base, tally, name, pattern)


def test_the_harness_sees_what_is_lost(server, base):
    """A file less, one more, one that is half-written, and other content."""
    work = WORKS["merge"]
    whole = reference(server, work, base)
    folder = base / "work"
    weights = folder / "merged" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert [line.partition(":")[0] for line in half_written(folder)] == ["merged/adapter_model.safetensors"]
    assert ["differs" in line for line in differences(work.left(folder), whole.contents)] == [True]
    weights.rename(folder / "tmp" / "left")
    lines = differences(work.left(folder), whole.contents)
    assert lines == ["merged/adapter_model.safetensors is missing", "tmp/left is left over"]
    assert goes_on(server, work, start(work, base), whole) == []
