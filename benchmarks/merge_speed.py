"""Times merges and their peak memory, ours and others', side by side: `python benchmarks/merge_speed.py --list`."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from benchmarks import tables  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    CHILD,
    Record,
    in_new_process,
    relative_error,
    run_contender,
    whole_file,
    write_adapters,
)
from benchmarks.works import CLONES, LABELS, WORKS, Work  # noqa: E402


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="show the works and end")
    add("--only", nargs="+", metavar="NAME", help="names of works, or groups: reach (default), more, sweep, smoke")
    add("--geometry", nargs="+", metavar="NAME", help="only works on these geometries, of all groups unless --only")
    add("--contenders", nargs="+", metavar="NAME", choices=list(LABELS), help=f"only these: {', '.join(LABELS)}")
    for name, option in CLONES.items():
        add(option, dest=name, metavar="FOLDER", help=f"a clone of the {LABELS[name].partition(',')[0]} repository")
    add("--runs", type=int, default=3, help="of each contender, each in a process of its own (default: 3)")
    add("--other-runs", type=int, help="of each contender but ours (default: as --runs)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
    add("--timeout", type=float, default=3600.0, help="seconds after which a run is given up (default: 3600)")
    add("--work-dir", type=Path, help="where adapters are written and kept (default: a temporary folder)")
    add("--json", type=Path, help="file to which all figures are written")
    arguments = parser.parse_args(argv)
    arguments.threads = arguments.threads or os.cpu_count() or 1
    arguments.other_runs = arguments.runs if arguments.other_runs is None else arguments.other_runs
    for option in ("runs", "other_runs", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option.replace('_', '-')} is {getattr(arguments, option)}; give 1 or more")
    known = {*WORKS, *(work.group for work in WORKS.values())}
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"unknown work {name!r}; --list shows them")
    geometries = {work.geometry for work in WORKS.values()}
    for name in arguments.geometry or ():
        if name not in geometries:
            parser.error(f"unknown geometry {name!r}; known: {', '.join(sorted(geometries))}")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json is {arguments.json}, but its folder does not exist; make it first")
    if arguments.work_dir and arguments.work_dir.exists() and not arguments.work_dir.is_dir():
        parser.error(f"--work-dir is {arguments.work_dir}, which is a file; give a folder")
    for name, option in CLONES.items():
        path = getattr(arguments, name)
        if path is not None and not Path(path).is_dir():
            parser.error(f"{option} is {path}, which is no folder; give the path of a clone")
    return arguments


def chosen(only: list[str] | None, geometry: list[str] | None) -> list[Work]:
    """Return the works that the options select."""
    names = only or (None if geometry else ["reach"])
    return [
        work
        for work in WORKS.values()
        if (names is None or work.name in names or work.group in names)
        and (geometry is None or work.geometry in geometry)
    ]


class Bench:
    """Runs contenders in processes of their own.

    This process imports no torch: on Linux a child's peak memory would otherwise start from its parent's.

    Args:
        root: Folder for adapters and results.
        clones: Contender to the path of its clone.
        threads: Of every process.
        timeout: Seconds after which a run is given up.
    """

    def __init__(self, root: Path, clones: dict[str, str], threads: int, timeout: float = 3600.0) -> None:
        self.root = root
        self.clones = clones
        self.threads = threads
        self.timeout = timeout

    def child(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run one task of `child_main` in a new process and return what it says."""
        specification = {"task": task, "root": str(self.root), **arguments}
        return in_new_process(Path(__file__).resolve(), specification, self.threads, self.timeout)

    def measure(self, work: Work, contender: str, runs: int) -> tables.Row:
        """Run one contender ``runs`` times; its first result is kept for `compare`."""
        option = CLONES.get(contender)
        if option and contender not in self.clones:
            return tables.Row(work.name, contender, error=f"not given: {option}")
        records = []
        for index in range(runs):
            result = str(self._result(work, contender)) if index == 0 and work.ending != "stream" else None
            answer = self.child(
                "run",
                contender=contender,
                work=work.name,
                threads=self.threads,
                clone=self.clones.get(contender),
                result=result,
            )
            if answer.get("error"):
                return tables.Row(work.name, contender, error=answer["error"])
            records.append(Record(**answer))
        return tables.Row(work.name, contender, records=records)

    def compare(self, work: Work, rows: list[tables.Row]) -> None:
        """Note in each row how far its result is from that of ours."""
        ours = next((row for row in rows if row.contender.startswith("ours") and not row.error), None)
        for row in rows:
            if ours and row is not ours and not row.error and self._result(work, row.contender).is_file():
                files = [self._result(work, name) for name in (ours.contender, row.contender)]
                whole = whole_file(files[0])
                files = [str(path) for path in (*files, whole) if path is not whole or path.is_file()]
                row.agreement = self.child("compare", files=files)

    def forget(self, work: Work) -> None:
        """Remove the results of a work."""
        for path in self.root.glob(f"{work.name}--*.safetensors"):
            path.unlink()

    def _result(self, work: Work, contender: str) -> Path:
        return self.root / f"{work.name}--{contender}.safetensors"


def child_main(specification: dict[str, Any]) -> dict[str, Any]:
    """Do, in a child process, what `Bench.child` asks."""
    root = Path(specification["root"])
    task = specification["task"]
    if task == "compare":
        return relative_error(*map(Path, specification["files"]))
    work = WORKS[specification["work"]]
    if task == "adapters":
        write_adapters(work, root)
        return {}
    result = specification["result"]
    return asdict(
        run_contender(
            specification["contender"],
            work,
            root,
            specification["threads"],
            clone=specification["clone"],
            result=Path(result) if result else None,
        )
    )


def machine(threads: int, clones: dict[str, str]) -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, commits."""
    from importlib.metadata import version

    commits = {}
    for name, path in {"ours": str(ROOT), **clones}.items():
        done = subprocess.run(
            ["git", "-C", path, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        commits[name] = done.stdout.strip() or "unknown"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "threads": threads,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "peft")},
        "commits": commits,
    }


def main(argv: list[str]) -> int:
    """Run what the command line asks for; 1 where a contender disagrees with ours or one of ours fails."""
    arguments = parse_arguments(argv)
    if arguments.list:
        tables.show_works(WORKS.values())
        return 0
    works = chosen(arguments.only, arguments.geometry)
    if not works:
        print("no work is selected: --list shows them, with their geometries", file=sys.stderr)
        return 2
    clones = {name: str(Path(getattr(arguments, name)).resolve()) for name in CLONES if getattr(arguments, name)}
    facts = machine(arguments.threads, clones)
    if facts["load before"] > 0.5:
        tables.progress(f"the load of this machine is {facts['load before']}: times and ratios will be wrong")
    rows: list[tables.Row] = []
    with tempfile.TemporaryDirectory(prefix="merge-speed-") as temporary:
        root = (arguments.work_dir or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        bench = Bench(root, clones, arguments.threads, arguments.timeout)
        for work in works:
            answer = bench.child("adapters", work=work.name)
            if answer.get("error"):
                raise SystemExit(f"the adapters of {work.name} could not be written: {answer['error']}")
            of_work = []
            for contender in work.contenders:
                if arguments.contenders and contender not in arguments.contenders:
                    continue
                runs = arguments.runs if contender.startswith("ours") else arguments.other_runs
                tables.progress(f"{work.name}: {LABELS[contender]}")
                of_work.append(bench.measure(work, contender, runs))
            tables.progress(f"{work.name}: comparing")
            bench.compare(work, of_work)
            bench.forget(work)
            rows += of_work
            if arguments.json:
                write_json(arguments.json, facts, rows)
    tables.show(rows, facts)
    return 1 if any(row.failed for row in rows) else 0


def write_json(path: Path, facts: dict[str, Any], rows: list[tables.Row]) -> None:
    """Write every figure; called after each work, so that an interrupted run leaves what it has."""
    content = {"machine": facts, "rows": [asdict(row) for row in rows], "works": {}}
    content["works"] = {row.work: asdict(WORKS[row.work]) for row in rows}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(child_main(json.loads(sys.argv[2]))))
    else:
        try:
            sys.exit(main(sys.argv[1:]))
        except KeyboardInterrupt:  # what was measured until then stands in the file of --json
            sys.exit(130)
