"""Kill a command at a moment, let it go on, and say what was lost."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trust.server import DEADLINE, Ended, Server
from tests.trust.snapshots import differences, half_written
from tests.trust.works import Work, start

KILLED_AGAIN = 0.3  # share of trials whose second run is killed too


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        ended: how it ended.
        contents: what it left; see `tests.trust.snapshots.contents`.
    """

    ended: Ended
    contents: dict[str, Any]


@dataclass
class Tally:
    """What came of the faults that were injected into one command.

    Attributes:
        work: the command.
        fault: what was injected.
        injected: how often.
        lost: what was lost, a line each.
    """

    work: str
    fault: str
    injected: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, moment: str, faults: list[str]) -> None:
        """Count a fault and what it cost."""
        self.injected += 1
        if faults:
            self.lost.append(f"{moment}: {'; '.join(faults)}")

    @property
    def row(self) -> tuple[str, str, int, int, int]:
        """Command, fault, how many were injected, survived, lost."""
        return self.work, self.fault, self.injected, self.injected - len(self.lost), len(self.lost)


def reference(server: Server, work: Work, base: Path) -> Reference:
    """Run a command without a fault."""
    folder = start(work, base)
    ended = server.run(work.job(folder))
    assert ended.status == 0, (ended.out, ended.err)
    assert half_written(folder) == []
    return Reference(ended, work.left(folder))


def moments(work: Work, whole: Reference, count: int) -> Iterator[dict[str, Any]]:
    """Yield moments at which a command is killed: random times, and random changes of the file system in turn."""
    generator = random.Random(work.name)
    for number in range(count):
        if number % 2:
            yield {"kill_before": generator.randrange(len(whole.ended.changes))}
        else:
            yield {"kill_after": generator.uniform(0, whole.ended.seconds)}


def kill_and_resume(server: Server, work: Work, base: Path, whole: Reference, moment: dict[str, Any]) -> list[str]:
    """Kill a command at a moment, look at what is there, give it again until it ends; return all that is wrong."""
    folder = start(work, base)
    generator = random.Random(str(moment))
    ended = _killed(server, work, folder, moment)
    faults = _after_a_kill(folder)
    total = len(whole.ended.units)
    done = work.finished(folder) if work.finished else 0
    if generator.random() < KILLED_AGAIN:
        again = server.run(work.job(folder, kill_after=generator.uniform(0, whole.ended.seconds)))
        faults += _after_a_kill(folder)
        if work.finished and not again.killed:  # it ended before its moment
            faults += _repeated(again, total - done)
        done = work.finished(folder) if work.finished else 0
    ended = server.run(work.job(folder))
    if ended.status:
        faults.append(f"the command given again ends with {ended.status}: {(ended.err or ended.out)[-500:]}")
    if work.finished:
        faults += _repeated(ended, total - done)
    return faults + differences(work.left(folder), whole.contents)


def _killed(server: Server, work: Work, folder: Path, moment: dict[str, Any]) -> Ended:
    ended = server.run(work.job(folder, **moment))
    while not ended.killed:  # this time it was faster
        assert "kill_after" in moment, (moment, ended)
        moment["kill_after"] *= 0.8
        folder = start(work, folder.parent)
        ended = server.run(work.job(folder, **moment))
    assert ended.seconds < DEADLINE, "it hangs"
    return ended


def _after_a_kill(folder: Path) -> list[str]:
    return [f"half-written: {line}" for line in half_written(folder)]


def _repeated(ended: Ended, left: int) -> list[str]:
    count = len(ended.units)
    return [] if count == left else [f"{left} units of work were left, and {count} were done"]
