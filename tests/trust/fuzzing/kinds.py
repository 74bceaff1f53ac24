"""Kinds of hostile input, and what each is given to."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.trust.fuzzing.harness import SECONDS, Outcome, Sandbox, attempt

Target = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: in tables and on the command line.
        what: what is mutated, and what reads it.
        count: inputs of the slow test.
        fast: inputs of the fast test.
        lay: puts one input into the sandbox, and returns what is to be run on it.
        seconds: after which an input hangs.
    """

    name: str
    what: str
    count: int
    fast: int
    lay: Callable[[random.Random, Sandbox], Target]
    seconds: float = SECONDS

    def outcome(self, sandbox: Sandbox, number: int) -> Outcome:
        """Make input ``number`` of this kind, always the same one, and return what became of it."""
        rng = random.Random(f"{self.name} {number}")
        sandbox.fresh()
        return attempt(self.lay(rng, sandbox), sandbox, self.seconds)

    def outcomes(self, sandbox: Sandbox, numbers: Iterable[int]) -> Iterator[tuple[int, Outcome]]:
        """Yield what became of some inputs."""
        for number in numbers:
            yield number, self.outcome(sandbox, number)


def write(path: Path, content: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def all_kinds() -> dict[str, Kind]:
    """Return every kind by its name."""
    from tests.trust.fuzzing import adapters, configs, data, results

    return {kind.name: kind for module in (adapters, configs, data, results) for kind in module.KINDS}
