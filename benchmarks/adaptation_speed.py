"""Times a step of AdaRank and its peak memory, ours and the published way's: `python benchmarks/adaptation_speed.py`.

A step merges all weights from mask logits and coefficients, runs one batch of each task through them, and takes the
entropy back into masks and coefficients. The model is CLIP's vision tower with random weights and random updates, so
nothing is downloaded. Each measurement is made in a process of its own.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from benchmarks.adaptation_cases import (  # noqa: E402
    CASES,
    GEOMETRIES,
    Case,
    Setting,
    model_flops,
    whole_work,
)
from benchmarks.measure import CHILD, in_new_process  # noqa: E402
from benchmarks.merge_speed import machine  # noqa: E402
from benchmarks.tables import progress  # noqa: E402

WAYS = ("ours", "published")
# Between ways: float32 rounding of sums of thousands of terms; the model in between makes more of it.
TOLERANCES = {"merging": 1e-4, "step": 1e-2}

Row = dict[str, Any]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", metavar="CASE", choices=list(CASES), help=f"of {', '.join(CASES)} (default: all)")
    add("--geometry", choices=list(GEOMETRIES), default="vit-b-32")
    add("--tasks", type=int, default=8, help="that are merged (default: 8)")
    add("--batch", type=int, default=16, help="pictures of each task in a step (default: 16)")
    add("--steps", type=int, default=3, help="after one to warm up; the median counts (default: 3)")
    add("--layers", type=int, help="of the model (default: all)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
    add("--timeout", type=float, default=3600.0, help="seconds after which a process is given up (default: 3600)")
    add("--no-preparing", dest="preparing", action="store_false", help="leave out how long decompositions take")
    add("--json", type=Path, help="file to which all figures are written")
    arguments = parser.parse_args(argv)
    arguments.threads = arguments.threads or os.cpu_count() or 1
    for name in ("tasks", "batch", "steps", "layers", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; give 1 or more")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json is {arguments.json}, but its folder does not exist; make it first")
    return arguments


def child_main(specification: dict[str, Any]) -> dict[str, Any]:
    """Do, in a child process, one task: ``measure``, ``prepare``, ``compare`` or ``rates``."""
    import torch

    from benchmarks import adaptation_ways

    task, files = specification["task"], [Path(path) for path in specification.get("files", ())]
    torch.set_num_threads(specification["threads"])
    if task == "rates":
        return adaptation_ways.machine_rates()
    if task == "compare":
        return adaptation_ways.largest_differences(*files)
    case, way, setting = CASES[specification["case"]], specification["way"], Setting(**specification["setting"])
    if task == "prepare":
        return adaptation_ways.prepare(case, way, setting)
    return adaptation_ways.measure(case, way, specification["what"], setting, specification["steps"], *files)


class Bench:
    """Measures both ways at each case.

    Args:
        arguments: The command line's.
        folder: For results that are compared.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path):
        self.arguments = arguments
        self.folder = folder
        self.setting = Setting(arguments.geometry, arguments.tasks, arguments.batch, arguments.layers)

    def child(self, task: str, **more: Any) -> dict[str, Any]:
        """Do one task of `child_main` in a new process."""
        setting = {name: getattr(self.setting, name) for name in ("geometry", "tasks", "batch", "layers")}
        specification = {"task": task, "setting": setting, "threads": self.arguments.threads, **more}
        script = Path(__file__).resolve()
        return in_new_process(script, specification, self.arguments.threads, self.arguments.timeout)

    def row(self, case: Case, way: str) -> Row:
        """Measure one way; what fails is a line of the table."""
        row: Row = {"case": case.name, "way": way, **asdict(whole_work(way, case, self.setting))}
        for what in ("merging", "step"):
            progress(f"{case.name}, {way}: {what}")
            row[what] = self.child(
                "measure",
                case=case.name,
                way=way,
                what=what,
                steps=self.arguments.steps,
                files=[str(self.folder / f"{way}-{what}")],
            )
            if "error" in row[what]:
                return {**row, "error": row[what]["error"]}
        if self.arguments.preparing:
            progress(f"{case.name}, {way}: preparing")
            row["preparing"] = self.child("prepare", case=case.name, way=way)
            if "error" in row["preparing"]:
                row["error"] = row["preparing"]["error"]
        return row

    def compare(self) -> dict[str, Any]:
        """Return how far the two ways' results are apart, of the case that was measured last."""
        return {
            what: self.child("compare", files=[str(self.folder / f"{way}-{what}") for way in WAYS])
            for what in ("merging", "step")
        }


def seconds(row: Row, part: str, what: str = "step") -> float:
    """Return the median seconds of a part, of whole steps or of merging alone."""
    return statistics.median(times[part] for times in row[what]["seconds"])


def memory(row: Row, what: str) -> float:
    """Return megabytes at the peak.

    Of a step: all above the imported libraries. Of merging: all above these and the base weights that it starts from.
    """
    own = row[what]
    return own["peak_mb"] - own["imports_mb"] - (own["base_mb"] if what == "merging" else 0)


def floor_seconds(row: Row, rates: dict[str, float]) -> float:
    """Return the least seconds of merging: products at the rate of a large one, or bytes at that of a copy."""
    return max(row["flops"] / rates["flops"], row["moved"] / rates["bytes"])


def figures(rows: list[Row], rates: dict[str, float]) -> Table:
    """Return one line a row."""
    table = Table(title="A step of adaptation", title_justify="left")
    for column in ("case", "way"):
        table.add_column(column, no_wrap=True)
    names = ["step s", "model s", "merging s", "alone s", "floor GFLOP", "floor GB", "floor s", "GFLOP/s", "step MB"]
    for column in (*names, "merging MB", "preparing s"):
        table.add_column(column, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["case"], row["way"], row["error"])
            continue
        merging = seconds(row, "merging")
        prepared = row.get("preparing")
        cells = [seconds(row, "step"), seconds(row, "model"), merging, seconds(row, "merging", "merging")]
        cells += [row["flops"] / 1e9, row["moved"] / 1e9, floor_seconds(row, rates), row["flops"] / 1e9 / merging]
        cells += [memory(row, "step"), memory(row, "merging")]
        cells += [prepared["seconds"] * prepared["layers"]] if prepared else []
        table.add_row(row["case"], row["way"], *map(number, cells), end_section=row["way"] == WAYS[-1])
    return table


def number(value: float) -> str:
    """Return three digits, or all of those before the point."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def reach(rows: list[Row]) -> Table:
    """Return the ratios of each case, those that are aimed at with their verdict."""
    table = Table(title="Published way by ours", title_justify="left")
    for column in ("case", "what", "ratio", "aimed at", ""):
        table.add_column(column, justify="right" if column in ("ratio", "aimed at") else "left")
    for case in CASES.values():
        pair = [row for row in rows if row["case"] == case.name and "error" not in row]
        if len(pair) < len(WAYS):
            continue
        ours, theirs = pair
        for what, aimed, of in (
            ("seconds", case.target.faster, "merging"),
            ("seconds", None, "step"),
            ("memory", case.target.memory if case.target.memory_of == "merging" else None, "merging"),
            ("memory", case.target.memory if case.target.memory_of == "step" else None, "step"),
        ):
            measured = seconds if what == "seconds" else memory
            ratio = measured(theirs, of) / max(measured(ours, of), 1e-9)  # a tiny merge may take no new page
            verdict = "" if aimed is None else "reached" if ratio >= aimed else "missed"
            table.add_row(case.name, f"{what}, {of}", f"{ratio:.3g}", f"{aimed:g}" if aimed else "", verdict)
        table.add_section()
    return table


def failures(differences: dict[str, Any]) -> list[str]:
    """Return a line for each case whose two ways do not agree."""
    return [
        f"{case}: the two ways DISAGREE, {what}: {found}"
        for case, parts in differences.items()
        for what, found in parts.items()
        if "error" in found or max(found.values()) > TOLERANCES[what]
    ]


def show(rows: list[Row], differences: dict[str, Any], rates: dict[str, float], facts: Row, bench: Bench) -> None:
    """Print the figures and what they mean."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(figures(rows, rates))
    own, layers = bench.arguments, bench.setting.config["num_hidden_layers"]
    console.print(
        f"{own.geometry}, {layers} layers, {own.tasks} tasks, batches of {own.batch}; full: attention and MLP weights, "
        f"lora: rank 16 on the attention; the published way on their dense differences. Medians of {own.steps} steps."
    )
    console.print(
        "Step: merging + model + Adam; model: forward and backward over the batches of all tasks, into the merged "
        "weights, which both ways share; merging: all weights, and their gradients back into masks and coefficients; "
        "alone: the same in a process without batches. Floor: what merging must compute and move at least, entry by "
        f"entry work left out, and its seconds at the {rates['flops'] / 1e9:.0f} GFLOP/s of one large product and the "
        f"{rates['bytes'] / 1e9:.1f} GB/s of a copy on this machine. GFLOP/s: floor GFLOP by merging s. Megabytes "
        "of 10^6 bytes, at the peak: of a step above the imported libraries; of merging alone, with given gradients, "
        "above libraries and base weights. "
        "Preparing: the decomposition of one layer, times the number of layers."
    )
    for case in dict.fromkeys(row["case"] for row in rows):
        work = model_flops(CASES[case], bench.setting) / 1e9
        console.print(f"- {case}: the model's linear layers take {number(work)} GFLOP a step, either way.")
    for case, parts in differences.items():
        texts = [
            f"{what}: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items())
            for what, found in parts.items()
            if "error" not in found
        ]
        console.print(f"- {case}: largest difference by the largest entry of its tensor; " + "; ".join(texts))
    for line in failures(differences):
        console.print(f"- {line}")
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    console.print(reach(rows))


def main(argv: list[str]) -> int:
    """Measure and print; 1 where a way fails or the two disagree."""
    arguments = parse_arguments(argv)
    facts = machine(arguments.threads, {})
    if facts["load before"] > 0.5:
        progress(f"the load of this machine is {facts['load before']}: times and ratios will be wrong")
    rows: list[Row] = []
    differences: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="adaptation-speed-") as folder:
        bench = Bench(arguments, Path(folder))
        rates = bench.child("rates")
        if "error" in rates:
            raise SystemExit(f"the rates of this machine could not be measured: {rates['error']}")
        for case in [CASES[name] for name in arguments.only or CASES]:
            of_case = [bench.row(case, way) for way in WAYS]
            rows += of_case
            if not any("error" in row for row in of_case):
                differences[case.name] = bench.compare()
            if arguments.json:  # after each case, so that an interrupted run leaves what it has
                setting = {"threads": arguments.threads, "steps": arguments.steps, **asdict(bench.setting)}
                content = {"machine": facts, "rates": rates, "setting": setting}
                content |= {"rows": rows, "differences": differences}
                arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    show(rows, differences, rates, facts, bench)
    return 1 if failures(differences) or any("error" in row for row in rows) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(child_main(json.loads(sys.argv[2]))))
    else:
        try:
            sys.exit(main(sys.argv[1:]))
        except KeyboardInterrupt:  # what was measured until then stands in the file of --json
            sys.exit(130)
