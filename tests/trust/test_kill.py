"""SIGKILL at random moments: the command given again ends, repeats nothing, and leaves what it always leaves."""

import pytest

from tests.trust.kills import kill_and_resume, moments, reference
from tests.trust.works import WORKS

MOMENTS = 50
# So many that the fast suite stays fast.
FEW = {"merge": 4, "merge --overwrite": 2, "merge --seeds": 2, "fit": 1, "prepare": 1}


@pytest.fixture
def killed(server, base, tally):
    """Kill a command at so many moments; fail if anything was lost."""

    def kill(name, count):
        work, row = WORKS[name], tally(name, "SIGKILL")
        whole = reference(server, work, base)
        for moment in moments(work, whole, count):
            at = whole.ended.changes[moment["kill_before"]] if "kill_before" in moment else ""
            faults = kill_and_resume(server, work, base, whole, moment)
            row.add(f"{moment} {at}", faults)
        assert row.injected == count and not row.lost, "\n".join(row.lost[:10])

    return kill


@pytest.mark.parametrize("name", FEW)
def test_a_few_kills(killed, name):
    killed(name, FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_many_kills(killed, name):
    killed(name, MOMENTS)
