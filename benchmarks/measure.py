"""One run of one contender, in a process of its own, and the comparison of two results."""

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.works import Work, adapter_paths, command_arguments

if TYPE_CHECKING:  # the process that times the command line imports torch only afterwards
    from torch import Tensor

    from benchmarks.contenders import Delta

Updates: TypeAlias = "dict[str, Delta]"

MB = 10**6

CHILD = "_child"
_ROOT = Path(__file__).resolve().parents[1]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Record:
    """What one run gave.

    Attributes:
        seconds: Of the work.
        cpu_seconds: Of all threads of the process, and of its children.
        baseline_mb: Resident memory after the imports; 0 where another process does the work.
        peak_mb: Largest resident memory of the whole process, up to the end of the work.
        notes: What the contender said of the run.
        error: Why there is no result; empty where there is one.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    baseline_mb: float = 0.0
    peak_mb: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def peak_memory(children: bool = False) -> float:
    """Return the largest resident memory so far in MB, of this process or of the largest of its children.

    Linux counts a parent's memory in ``getrusage`` of a process that it has started, so the process's own
    high-water mark is read where there is one.
    """
    status = Path("/proc/self/status")
    if not children and status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / MB
    usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


def reset_peak_memory() -> None:
    """Let `peak_memory` start from what is resident now, where the system can do that: Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Let malloc return what is free to the system, where the C library can do that: glibc can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_new_process(script: Path, specification: dict[str, Any], threads: int, timeout: float) -> dict[str, Any]:
    """Run ``script`` with `CHILD` and a specification in a new process, and return what it says, or ``error``.

    Args:
        script: Prints one line of JSON at its end.
        specification: What it is to do.
        threads: Of OpenMP and BLAS.
        timeout: Seconds after which it is given up.
    """
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, str(script), CHILD, json.dumps(specification)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"given up after {timeout:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        killed = f"killed by signal {-done.returncode}" if done.returncode < 0 else "failed"
        return {"error": f"{killed}: {lines[-1]}" if lines else killed}
    return json.loads(done.stdout.splitlines()[-1])


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_contender(
    name: str, work: Work, root: Path, threads: int, clone: str | None = None, result: Path | None = None
) -> Record:
    """Run one contender once, in this process.

    Args:
        name: Of the contender.
        work: What it does.
        root: Below which the adapters are.
        threads: For torch.
        clone: Path of published code.
        result: File to which the merged updates are written after the clock has stopped, or None.
    """
    scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=root))
    record = Record()
    try:
        time_it = _time_command if name == "ours-cli" else _time_here
        updates = time_it(record, name, work, root, scratch, threads, clone)
        if result:
            write_updates(updates(), result)
            if work.truncate and name == "ours":
                write_whole(work, root, whole_file(result))
    except Exception as error:  # a contender that fails is a row of the table
        record.error = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record


def _time_here(
    record: Record, name: str, work: Work, root: Path, scratch: Path, threads: int, clone: str | None
) -> Callable[[], Updates]:
    """Time a contender that is called as a library; return what shows its result."""
    import torch

    from benchmarks.contenders import contender

    torch.set_num_threads(threads)
    load = contender(name, clone, scratch)
    record.baseline_mb = peak_memory()
    prepared = load(work, adapter_paths(root, work))
    cpu, start = _cpu_seconds(), time.perf_counter()
    merged = prepared.run()
    record.seconds = time.perf_counter() - start
    record.cpu_seconds = _cpu_seconds() - cpu
    record.peak_mb = peak_memory()
    record.notes = prepared.notes
    return lambda: prepared.collect(merged)


def _time_command(
    record: Record, name: str, work: Work, root: Path, scratch: Path, threads: int, clone: str | None
) -> Callable[[], Updates]:
    """Time ``sheetbend merge``, from its start to its end. Nothing large is imported here before that."""
    output = scratch / "merged"
    command = [sys.executable, "-m", "launch", *command_arguments(work, adapter_paths(root, work), output)]
    environment = {**os.environ, "SHEETBEND_CACHE": str(scratch / "cache")}  # no run profits from an earlier one
    cpu, start = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    record.seconds = time.perf_counter() - start
    record.cpu_seconds = _cpu_seconds() - cpu
    record.peak_mb = peak_memory(children=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"sheetbend merge: {lines[-1] if lines else f'exit status {done.returncode}'}")

    def read() -> Updates:
        from benchmarks.contenders import read_folder

        return read_folder(output)

    return read


def whole_file(result: Path) -> Path:
    """Return where our merge before its truncation is written, beside a result."""
    return result.with_suffix(".whole.safetensors")


def write_whole(work: Work, root: Path, path: Path) -> None:
    """Write what a truncating work gives before it is cut."""
    from benchmarks.contenders import contender

    prepared = contender("ours")(replace(work, truncate=None), adapter_paths(root, work))
    write_updates(prepared.collect(prepared.run()), path)


def write_updates(updates: Updates, path: Path) -> None:
    """Write merged updates: dense ones as MODULE, factors as MODULE.B and MODULE.A."""
    from safetensors.torch import save_file

    tensors = {}
    for module, update in updates.items():
        parts = zip((".B", ".A"), update, strict=True) if isinstance(update, tuple) else (("", update),)
        tensors.update({module + suffix: part.float().contiguous().clone() for suffix, part in parts})
    save_file(tensors, path)


def relative_error(ours: Path, theirs: Path, whole: Path | None = None) -> dict[str, float]:
    """Compare two files of `write_updates`, module by module.

    Args:
        ours: Of our result.
        theirs: Of the contender's.
        whole: Of what both have cut to a rank, if they have.

    Returns:
        ``total``: norm of the difference by norm of theirs, over all modules; ``worst``: of the worst module. With
        ``whole``, also ``ours_lost`` and ``theirs_lost``: how far each is from it, by its norm.

    Raises:
        ValueError: They hold different modules.
    """
    from safetensors import safe_open

    files = [path for path in (ours, theirs, whole) if path]
    squares = []
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
        modules, *others = ({key.removesuffix(".A").removesuffix(".B") for key in file.keys()} for file in opened)  # noqa: SIM118 no mapping
        for names in others:
            if modules != names:
                raise ValueError(f"other modules were merged: {sorted(modules ^ names)[0]} by one contender only")
        for module in sorted(modules):
            mine, other, *rest = (_dense(file, module) for file in opened)
            parts = [
                mine - other,
                other,
                *(part for all_of_it in rest for part in (mine - all_of_it, other - all_of_it, all_of_it)),
            ]
            squares.append([float(part.double().square().sum()) for part in parts])
    sums = [sum(column) for column in zip(*squares, strict=True)]
    error = {
        "total": (sums[0] / sums[1]) ** 0.5,
        "worst": max(difference / norm for difference, norm, *_ in squares) ** 0.5,
    }
    if whole:
        error["ours_lost"], error["theirs_lost"] = ((lost / sums[4]) ** 0.5 for lost in sums[2:4])
    return error


def _dense(file: Any, module: str) -> "Tensor":
    if f"{module}.A" in file.keys():  # noqa: SIM118
        return file.get_tensor(f"{module}.B") @ file.get_tensor(f"{module}.A")
    return file.get_tensor(module)


def write_adapters(work: Work, root: Path) -> None:
    """Write the adapters of a work that are not there yet."""
    from benchmarks.geometries import GEOMETRIES, write_adapter

    for folder in adapter_paths(root, work):
        if not folder.is_dir():
            write_adapter(folder, GEOMETRIES[work.geometry], work.rank)
