"""What is measured: a table of works, the contenders of each, and what is aimed at."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

#: Contenders that need a clone, and the option that gives its path.
CLONES = {"knots": "--knots-repo", "core": "--core-repo", "mergekit": "--mergekit-repo"}

#: What the tables call the contenders.
LABELS = {
    "ours": "ours",
    "ours-applied": "ours, added to weights",
    "ours-cli": "ours, sheetbend merge",
    "knots": "KnOTS, published",
    "core": "Core Space, published",
    "mergekit": "mergekit",
    "peft": "PEFT",
}


@dataclass(frozen=True)
class Target:
    """What a work shall reach: so many times faster than a contender, in such a part of its memory, or figures.

    Attributes:
        contender: With whom ours is compared; None where ``seconds`` and ``peak_mb`` are the limits.
        faster: Least ratio of times.
        memory: Least ratio of peak memories.
        seconds: Most seconds.
        peak_mb: Most memory, in MB of 10 ** 6 bytes.
    """

    contender: str | None = None
    faster: float | None = None
    memory: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Work:
    """One merge, done by several contenders on the same adapters.

    Attributes:
        name: Unique.
        geometry: Name in `benchmarks.geometries.GEOMETRIES`.
        what: Exactly what is done, for the reader of the table.
        method: Class in `mergers`, and its fields.
        contenders: Who does it.
        group: reach, more, sweep or smoke.
        tasks: How many adapters.
        rank: Of each.
        space: Of our merger.
        finish: Of our merger.
        truncate: Rank to which the result is cut; None: not at all.
        ending: Where the work ends: "memory": the merged updates are in memory; "stream": each module's
            was, and went; "disk": from adapters on disk to a merged adapter on disk.
        peft: PEFT's ``combination_type``.
        one_fewer: The contenders keep floor(d * density) entries where ours keep one more, so ours is given
            the density at which the counts agree.
        tolerance: Largest relative error between ours and a contender that still is agreement; where both cut to a
            rank, by how much of theirs our error may exceed it.
        target: What is aimed at.
        note: What the table's reader should know.
    """

    name: str
    geometry: str
    what: str
    method: tuple[str, dict[str, Any]]
    contenders: tuple[str, ...]
    group: str = "more"
    tasks: int = 8
    rank: int = 16
    space: str = "full"
    finish: str | None = None
    truncate: int | None = None
    ending: str = "memory"
    peft: str | None = None
    one_fewer: bool = False
    tolerance: float = 1e-2
    target: Target | None = None
    note: str = ""

    def describe(self) -> str:
        """Say what is done, to which adapters."""
        what = self.what.format(truncate=self.truncate)
        return f"{what}; {self.tasks} adapters of {self.geometry}, rank {self.rank}"


_KNOTS_TIES: dict[str, Any] = {"space": "knots", "method": ("Ties", {"density": 0.2})}
_TOO_LARGE = "no published code is asked: it holds all deltas, 1.3e9 entries a task, 32 GB for six tasks in float32"


def _reach() -> list[Work]:
    return [
        Work(
            name="knots-ties-vit-b",
            geometry="vit-b-32",
            what="TIES in KnOTS space, 20 % kept by one threshold a task",
            contenders=("ours", "ours-applied", "knots"),
            group="reach",
            target=Target("knots", faster=100, memory=8),
            **_KNOTS_TIES,
        ),
        Work(
            name="knots-ties-vit-l",
            geometry="vit-l-14",
            what="TIES in KnOTS space, 20 % kept by one threshold a task",
            contenders=("ours", "ours-applied", "knots"),
            group="reach",
            target=Target("knots", faster=150),
            **_KNOTS_TIES,
        ),
        Work(
            name="full-ties-vit-b",
            geometry="vit-b-32",
            what="TIES in full space, 20 % kept by one threshold a task",
            method=("Ties", {"density": 0.2}),
            contenders=("ours", "ours-applied", "knots"),
            group="reach",
            target=Target("knots", faster=6, memory=10),
        ),
        Work(
            name="core-ties-iso-vit-b",
            geometry="vit-b-32",
            what="TIES in core space, 20 % kept module by module, then Iso",
            method=("Ties", {"density": 0.2, "trim": "local"}),
            space="core",
            finish="iso",
            contenders=("ours", "ours-applied", "core"),
            group="reach",
            target=Target("core", faster=8),
        ),
        Work(
            name="sum-r128-vit-b",
            geometry="vit-b-32",
            what="sum of the updates as an adapter of rank {truncate}",
            method=("TaskArithmetic", {}),
            contenders=("ours", "peft"),
            group="reach",
            truncate=128,
            peft="svd",
            tolerance=1e-4,
            target=Target("peft", faster=10),
        ),
        Work(
            name="ties-r128-vit-b",
            geometry="vit-b-32",
            what="TIES in full space, 20 % kept module by module, cut to rank {truncate}",
            method=("Ties", {"density": 0.2, "trim": "local"}),
            contenders=("ours", "peft"),
            group="reach",
            truncate=128,
            peft="ties_svd",
            one_fewer=True,
            target=Target("peft", faster=25),
        ),
        Work(
            name="knots-ties-llama-disk",
            geometry="llama-3-8b",
            what="TIES in KnOTS space, 20 % kept by one threshold a task, disk to disk",
            contenders=("ours", "ours-cli"),
            group="reach",
            tasks=6,
            ending="disk",
            target=Target(seconds=25, peak_mb=2000),
            note=_TOO_LARGE,
            **_KNOTS_TIES,
        ),
        Work(
            name="full-ties-llama",
            geometry="llama-3-8b",
            what="TIES in full space, 20 % kept by one threshold a task; each dense result is read once and dropped",
            method=("Ties", {"density": 0.2}),
            contenders=("ours",),
            group="reach",
            tasks=6,
            ending="stream",
            target=Target(seconds=180, peak_mb=3000),
            note=_TOO_LARGE,
        ),
    ]


def _more() -> list[Work]:
    return [
        Work(
            name="sum-r32-vit-b",
            geometry="vit-b-32",
            what="sum of the updates, cut to rank {truncate}",
            method=("TaskArithmetic", {}),
            contenders=("ours", "peft"),
            truncate=32,
            peft="svd",
            tolerance=1e-3,
        ),
        Work(
            name="sum-vit-b",
            geometry="vit-b-32",
            what="sum of the updates as an adapter of rank sum(r_i)",
            method=("TaskArithmetic", {}),
            contenders=("ours", "peft"),
            peft="cat",
            tolerance=1e-5,
        ),
        Work(
            name="local-ties-vit-b",
            geometry="vit-b-32",
            what="TIES in full space, 20 % kept module by module",
            method=("Ties", {"density": 0.2, "trim": "local"}),
            contenders=("ours", "ours-applied", "mergekit"),
            one_fewer=True,
        ),
        Work(
            name="mean-vit-b",
            geometry="vit-b-32",
            what="mean of the updates, added to the weights",
            method=("Mean", {}),
            contenders=("ours-applied", "mergekit"),
            tolerance=1e-5,
        ),
        Work(
            name="full-ties-llama-layer",
            geometry="llama-3-8b-layer",
            what="TIES in full space, 20 % kept by one threshold a task, on one layer of 32",
            method=("Ties", {"density": 0.2}),
            contenders=("ours", "knots"),
            tasks=6,
        ),
        Work(
            name="knots-ties-llama-kv",
            geometry="llama-3-8b-kv",
            what="TIES in KnOTS space, 20 % kept by one threshold a task, on k and v of one layer of 32",
            contenders=("ours", "ours-applied", "knots"),
            tasks=6,
            **_KNOTS_TIES,
        ),
        Work(
            name="knots-ties-llama-x20-disk",
            geometry="llama-3-8b",
            what="TIES in KnOTS space, 20 % kept by one threshold a task, disk to disk",
            contenders=("ours", "ours-cli"),
            tasks=20,
            ending="disk",
            note=_TOO_LARGE,
            **_KNOTS_TIES,
        ),
    ]


def _sweeps() -> list[Work]:
    what = "TIES in KnOTS space, 20 % kept by one threshold a task"
    ranks = [
        Work(
            name=f"sweep-rank-{rank}",
            geometry="vit-b-32",
            what=what,
            contenders=("ours", "knots"),
            group="sweep",
            rank=rank,
            **_KNOTS_TIES,
        )
        for rank in (4, 8, 16, 32, 64, 128, 256)
    ]
    tasks = [
        Work(
            name=f"sweep-tasks-{count}",
            geometry="vit-b-32",
            what=what,
            contenders=("ours", "knots") if count <= 16 else ("ours",),
            group="sweep",
            tasks=count,
            note="" if count <= 16 else "the published code, which takes some 0.5 GB a task, is asked up to 16 tasks",
            **_KNOTS_TIES,
        )
        for count in (2, 4, 8, 16, 32, 64)
    ]
    return [*ranks, *tasks]


def _smoke() -> list[Work]:
    """The same on a model of a few thousand entries: whether every contender runs and agrees, in seconds."""
    return [
        replace(
            work,
            name="smoke-" + work.name.removesuffix("-vit-b"),
            geometry="tiny",
            group="smoke",
            tasks=4,
            rank=4,
            truncate=16 if work.truncate == 128 else work.truncate and 8,
            target=None,
            note="",
        )
        for work in (*_reach(), *_more())
        if work.geometry in ("vit-b-32", "llama-3-8b") and work.tasks < 20
    ]


WORKS: dict[str, Work] = {work.name: work for work in (*_reach(), *_more(), *_sweeps(), *_smoke())}


def contender_density(density: float, entries: int) -> float:
    """Return the density at which ours keeps floor(entries * density) of ``entries``, as PEFT and mergekit do.

    Of d entries ours keeps those not smaller than the (d - floor(d * density))-th smallest: one more.

    >>> kept = lambda density, d: d - (d - int(d * density)) + 1
    >>> kept(0.2, 100), kept(contender_density(0.2, 100), 100)
    (21, 20)
    """
    return (int(entries * density) - 0.5) / entries


def adapter_paths(root: Path, work: Work) -> list[Path]:
    """Return the folders of a work's adapters below ``root``."""
    return [root / f"{work.geometry}-r{work.rank}" / f"task_{index}" for index in range(work.tasks)]


def command_arguments(work: Work, folders: list[Path], output: Path) -> list[str]:
    """Return the arguments of ``sheetbend merge`` for a work."""
    method, settings = work.method
    arguments = ["merge", "--adapters", *map(str, folders), "--space", work.space, "--method", method]
    for name, value in settings.items():
        arguments += [f"--method.{name}", str(value)]
    if work.finish:
        arguments += ["--finish", work.finish]
    if work.truncate:
        arguments += ["--rank", str(work.truncate)]
    return [*arguments, "--output", str(output), "--quiet"]
