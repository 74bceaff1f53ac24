"""Time to test K merges in one sweep, against K runs, K sweeps in one process, and a plain PyTorch loop.

    python benchmarks/evaluation_speed.py --json evaluation.json
    python benchmarks/evaluation_speed.py --cases pictures --tower tiny --pictures 12 --variants 1 2 --runs 1   # small

Every way measures the pretrained model and the finetuned adapters too, each on every task, since normalised accuracy
needs both; all must name the same examples, or the exit status is 1.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers.utils.logging import disable_progress_bar, set_verbosity_error  # noqa: E402

from benchmarks.evaluation_cases import (  # noqa: E402
    BATCH,
    TEMPLATE,
    TINY_CLIP,
    TOWERS,
    Case,
    merge,
    write_pictures,
    write_quickstart,
)

SCRIPT = ROOT / "benchmarks" / "evaluation_ways.py"
CASES = ("quickstart", "pictures")
# What a row is called, and what it is.
ROWS = {
    "ours": "sheetbend test, one sweep",
    "runs": "sheetbend test, a run a merge",
    "runs cached": "the same, decoded pictures kept on disk",
    "sweeps": "a sweep a merge, one process",
    "plain": "plain loop",
    "floor": "forward passes, data read once",
}
TARGET = 3  # times the separate runs that ten merges in one sweep are to be faster
Seconds = tuple[float, float]  # of the wall, and of the processor


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--variants", type=int, nargs="+", default=[1, 2, 5, 10, 20], help="numbers of merges (default: 1 2 5 10 20)")
    add("--runs", type=int, default=3, help="of each measurement, in turn; the median counts (default: 3)")
    add("--threads", type=int, default=2, help="of torch (default: 2)")
    add("--tower", choices=list(TOWERS), default="vit-b-32", help="vision tower of the case pictures")
    add("--pictures", type=int, default=64, help="test pictures of each of its two tasks (default: 64)")
    add("--json", type=Path, metavar="FILE", help="write every measurement")
    arguments = parser.parse_args(argv)
    for name in ("runs", "threads", "pictures"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; give 1 or more")
    if min(arguments.variants) < 1:
        parser.error(f"--variants has {min(arguments.variants)}; give 1 or more")
    return arguments


class DisagreementError(Exception):
    """Two ways name other examples."""


@dataclass
class Bench:
    """One case and all that is measured of it.

    Attributes:
        case: what is tested.
        threads: of torch.
        work: folder for what runs write.
        measured: by (row, number of merges), one pair of seconds a run.
        spent: by number of merges, where the time of one sweep went, of each run.
        right: by variant and task, how many examples are named; what any way says, all must say.
    """

    case: Case
    threads: int
    work: Path
    measured: dict[tuple[str, int], list[Seconds]] = field(default_factory=dict)
    spent: dict[int, list[dict[str, Seconds]]] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)

    def measure(self, variants: list[int]) -> None:
        """Measure everything once, the ways in turn, so that a busy machine slows all of them."""
        most = max(variants)
        runs = {row: self._single_runs(most, row == "runs cached") for row in self._rows_of_runs()}
        for count in variants:
            for row, times in runs.items():
                self._note(row, count, tuple(map(sum, zip(*times[:count], strict=True))))
            self._note("ours", count, self._ours(list(range(count)), self._new_cache()))
            configurations = [str(self._configuration([number])[0]) for number in range(count)]
            self._note("sweeps", count, self._child("sweeps", configurations=configurations)[0])
            seconds, said = self._child("plain", merges=self._merges(count))
            self._note("plain", count, seconds)
            self._agree("plain loop", said["right"])
            floor = self._child("forward", merges=self._merges(count))[1]
            self._note("floor", count, tuple(map(sum, zip(floor["loading"], floor["forward"], strict=True))))
            path = str(self._configuration(list(range(count)))[0])
            self.spent.setdefault(count, []).append(self._child("parts", configurations=[path])[1]["spent"])

    def _rows_of_runs(self) -> list[str]:
        return ["runs", "runs cached"] if self.case.name == "pictures" else ["runs"]

    def _note(self, row: str, count: int, seconds: Seconds) -> None:
        self.measured.setdefault((row, count), []).append(seconds)
        print(f"... {self.case.name}, {count}: {ROWS[row]}: {seconds[0]:.1f} s", file=sys.stderr, flush=True)

    def _merges(self, count: int) -> dict[str, Any]:
        return {f"merge-{number}": merge(number) for number in range(count)}

    def _new_cache(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="cache-", dir=self.work))

    def _configuration(self, merges: list[int], cached: bool = False) -> tuple[Path, Path]:
        output = Path(tempfile.mkdtemp(prefix="run-", dir=self.work))
        return self.case.write_configuration(merges, output, cached), output

    def _single_runs(self, count: int, cached: bool) -> list[Seconds]:
        """Test each merge in a run of its own; they share one cache, as one user's runs do."""
        cache = self._new_cache()
        return [self._ours([number], cache, cached) for number in range(count)]

    def _ours(self, merges: list[int], cache: Path, cached: bool = False) -> Seconds:
        path, output = self._configuration(merges, cached)
        seconds, _ = self._timed([sys.executable, "-m", "launch", "test", "--config", str(path)], cache)
        scores = json.loads((output / "results.json").read_text())["scores"]
        own = [score for score in scores if score["metric"] == "accuracy"]
        self._agree("sheetbend test", {f"{s['variant']} {s['task']}": round(s["value"] * s["count"]) for s in own})
        return seconds

    def _child(self, way: str, **more: Any) -> tuple[Seconds, dict[str, Any]]:
        model = TINY_CLIP if self.case.name == "quickstart" else self.case.model
        batch = BATCH if self.case.name == "pictures" else 256
        specification = {
            "case": self.case.name,
            "folder": str(self.case.folder),
            "model": str(model),
            "tasks": list(self.case.tasks),
            "template": TEMPLATE,
            "batch": batch,
            **more,
        }
        seconds, printed = self._timed([sys.executable, str(SCRIPT), way, json.dumps(specification)], self._new_cache())
        return seconds, json.loads(printed.splitlines()[-1])

    def _timed(self, command: list[str], cache: Path) -> tuple[Seconds, str]:
        """Run a command in a new process; return its seconds, and what it printed."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT), "SHEETBEND_CACHE": str(cache)}
        environment["HF_HUB_OFFLINE"] = "1"
        before, start = _processor_seconds(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        seconds = time.perf_counter() - start, _processor_seconds() - before
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)[:200]}: {done.stderr.strip().splitlines()[-1:]}")
        return seconds, done.stdout

    def _agree(self, way: str, right: dict[str, int]) -> None:
        for name, count in right.items():
            if self.right.setdefault(name, count) != count:
                raise DisagreementError(
                    f"{self.case.name}, {name}: {way} names {count} examples, another way {self.right[name]}"
                )


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def median(times: list[Seconds]) -> Seconds:
    """Return the median of the wall's and of the processor's seconds."""
    wall, processor = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(processor)


def times_table(bench: Bench, variants: list[int]) -> Table:
    """Return a row a way, seconds of the wall and of the processor for each number of merges."""
    table = Table(title=f"{bench.case.name}: seconds (CPU seconds)", title_justify="left")
    table.add_column("way")
    for count in variants:
        table.add_column(f"{count} merge{'s' if count > 1 else ''}", justify="right")
    for row, title in ROWS.items():
        if (row, variants[0]) in bench.measured:
            cells = [median(bench.measured[row, count]) for count in variants]
            table.add_row(title, *(f"{wall:.1f} ({processor:.1f})" for wall, processor in cells))
    table.add_section()
    for row in ("runs", "runs cached", "sweeps", "plain"):
        if (row, variants[0]) in bench.measured:
            ratios = [ratio(bench, row, count) for count in variants]
            table.add_row(f"one sweep by {ROWS[row]}", *(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in ratios))
    return table


def ratio(bench: Bench, row: str, count: int) -> Seconds:
    """Return the seconds of one sweep by those of another way."""
    ours, other = median(bench.measured["ours", count]), median(bench.measured[row, count])
    return ours[0] / other[0], ours[1] / other[1]


def parts_table(bench: Bench, variants: list[int]) -> Table:
    """Return where the time of one sweep goes."""
    table = Table(title=f"{bench.case.name}: where the seconds of one sweep go (CPU seconds)", title_justify="left")
    table.add_column("part")
    for count in variants:
        table.add_column(f"{count} merge{'s' if count > 1 else ''}", justify="right")
    middle = {
        count: {
            part: median([one.get(part, (0.0, 0.0)) for one in bench.spent[count]]) for part in bench.spent[count][0]
        }
        for count in variants
    }
    names = [part for part in middle[variants[0]] if part != "whole"]
    for part in names:
        table.add_row(part, *(f"{middle[n][part][0]:.2f} ({middle[n][part][1]:.2f})" for n in variants))
    rest = [tuple(middle[n]["whole"][i] - sum(middle[n][part][i] for part in names) for i in (0, 1)) for n in variants]
    table.add_row("the rest", *(f"{wall:.2f} ({processor:.2f})" for wall, processor in rest))
    return table


def verdicts(bench: Bench, variants: list[int]) -> list[str]:
    """Return what was aimed at, and whether it was reached, by seconds of the wall."""
    said = []
    for row in ("runs", "sweeps", "plain"):
        slower = [count for count in variants if ratio(bench, row, count)[0] > 1]
        where = f"slower with {', '.join(map(str, slower))}" if slower else "never slower"
        said.append(f"one sweep against {ROWS[row]}: {where}")
    if 10 in variants and bench.case.name == "pictures":
        times = 1 / ratio(bench, "runs", 10)[0]
        reached = "reached" if times >= TARGET else "missed"
        said.append(f"ten merges {times:.1f} times as fast as ten runs; aimed at {TARGET}: {reached}")
    return said


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    set_verbosity_error()
    disable_progress_bar()
    load, benches = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as work:
        makers: dict[str, Callable[[Path], Case]] = {
            "quickstart": write_quickstart,
            "pictures": lambda folder: write_pictures(folder, arguments.tower, arguments.pictures),
        }
        for name in arguments.cases:
            (Path(work) / name / "work").mkdir(parents=True)
            benches.append(Bench(makers[name](Path(work) / name), arguments.threads, Path(work) / name / "work"))
        try:
            for _ in range(arguments.runs):
                for bench in benches:
                    bench.measure(arguments.variants)
        except DisagreementError as error:
            print(f"DISAGREE: {error}")
            return 1
    console = Console(width=None if sys.stdout.isatty() else 160)
    for bench in benches:
        for table in (times_table(bench, arguments.variants), parts_table(bench, arguments.variants)):
            console.print(table)
        for line in verdicts(bench, arguments.variants):
            console.print(f"- {line}")
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads",
        "load before": f"{load:.1f}",
        "runs": arguments.runs,
        "Python": platform.python_version(),
    }
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if arguments.json:
        content = [
            {
                "case": bench.case.name,
                "measured": {f"{row}, {count}": times for (row, count), times in bench.measured.items()},
                "spent": bench.spent,
                "right": bench.right,
            }
            for bench in benches
        ]
        arguments.json.write_text(json.dumps({"facts": facts, "cases": content}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
