"""Ctrl-C at random moments: a prompt end, one short message, nothing half-written, and the same command goes on."""

import random
from dataclasses import replace

import pytest

from tests.trust.kills import reference
from tests.trust.server import PROMPT
from tests.trust.snapshots import differences, half_written
from tests.trust.works import WORKS, start

INTERRUPTED = 130
LINES = 3  # of the message, on a terminal 80 wide
MOMENTS = 8
FEW = {"merge": 4, "merge --seeds": 3, "test": 2, "report": 2, "prepare": 2, "fit, workers": 1}
TWO_WORKERS = ("--data.num_workers", "2")
COMMANDS = {
    **{name: WORKS[name] for name in WORKS if name not in ("merge --overwrite", "fit, max_steps at an epoch's end")},
    **{f"{name}, workers": replace(WORKS[name], name=f"{name}, workers", words=(*WORKS[name].words, *TWO_WORKERS)) for name in ("fit", "test", "search", "adapt")},
}


def moments(name, whole, count):
    """Yield moments at which a command is interrupted: random times, and random changes of the file system in turn."""
    generator = random.Random(name)
    for number in range(count):
        if number % 2:
            yield {"interrupt_before": generator.randrange(len(whole.ended.changes))}
        else:
            yield {"interrupt_after": generator.uniform(0, whole.ended.seconds)}


def wrong(ended):
    """Return what is wrong with the end of a command that was interrupted."""
    faults = []
    if ended.status != INTERRUPTED:
        faults.append(f"it ended with {ended.status}")
    if ended.waited > PROMPT:
        faults.append(f"it took {ended.waited:.1f} s to end")
    if ended.alive:
        faults.append(f"left alive: {ended.alive}")
    if ended.err.strip() or "Traceback" in ended.out or ended.out.count("interrupted") > 1:
        faults.append(f"it said {ended.out[-500:]!r} {ended.err[-3000:]!r}")
    return faults


def interrupt(server, work, base, whole, moment):
    """Interrupt a command at a moment; return how it ended."""
    folder = start(work, base)
    ended = server.run(work.job(folder, **moment))
    while ended.waited is None or (ended.status == 0 and "interrupt_after" in moment and ended.waited < 0.05):  # this time it was faster
        moment["interrupt_after"] *= 0.8
        folder = start(work, base)
        ended = server.run(work.job(folder, **moment))
    faults = wrong(ended) + [f"half-written: {line}" for line in half_written(folder)]
    again = server.run(work.job(folder))
    if again.status:
        faults.append(f"the command given again ends with {again.status}: {(again.err or again.out)[-500:]}")
    return ended.waited, faults + differences(work.left(folder), whole.contents)


@pytest.fixture
def interrupted(server, base, tally):
    """Interrupt a command at so many moments; fail if anything was lost."""

    def run(name, count):
        work, row = COMMANDS[name], tally(name, "SIGINT")
        whole = reference(server, work, base)
        longest = 0.0
        for moment in moments(name, whole, count):
            waited, faults = interrupt(server, work, base, whole, moment)
            longest = max(longest, waited)
            at = whole.ended.changes[moment["interrupt_before"]] if "interrupt_before" in moment else ""
            row.add(f"{moment} {at}", faults)
        print(f"{name}: at most {longest:.2f} s from Ctrl-C to the end")
        assert row.injected == count and not row.lost, "\n".join(row.lost[:10])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_many_moments(interrupted, name):
    interrupted(name, MOMENTS)
