"""One run of one contender, in a process of its own, and the comparison of two results."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.works import Work, adapter_paths, command_arguments

if TYPE_CHECKING:  # the process that times the command line imports torch only afterwards
    from torch import Tensor

    from benchmarks.contenders import Delta

Updates: TypeAlias = "dict[str, Delta]"

MB = 10**6


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


def write_updates(updates: Updates, path: Path) -> None:
    """Write merged updates: dense ones as MODULE, factors as MODULE.B and MODULE.A."""
    from safetensors.torch import save_file

    tensors = {}
    for module, update in updates.items():
        parts = zip((".B", ".A"), update, strict=True) if isinstance(update, tuple) else (("", update),)
        tensors.update({module + suffix: part.float().contiguous().clone() for suffix, part in parts})
    save_file(tensors, path)


def relative_error(ours: Path, theirs: Path) -> dict[str, float]:
    """Compare two files of `write_updates`, module by module.

    Returns:
        ``total``: norm of the difference by norm of theirs, over all modules; ``worst``: of the worst module.

    Raises:
        ValueError: They hold different modules.
    """
    from safetensors import safe_open

    with safe_open(ours, "pt") as our_file, safe_open(theirs, "pt") as their_file:
        modules = {key.removesuffix(".A").removesuffix(".B") for key in our_file.keys()}  # noqa: SIM118 no mapping
        others = {key.removesuffix(".A").removesuffix(".B") for key in their_file.keys()}  # noqa: SIM118
        if modules != others:
            raise ValueError(f"other modules were merged: {sorted(modules ^ others)[0]} by one contender only")
        errors, norms = [], []
        for module in sorted(modules):
            ours_dense, theirs_dense = _dense(our_file, module), _dense(their_file, module)
            errors.append(float((ours_dense - theirs_dense).double().square().sum()))
            norms.append(float(theirs_dense.double().square().sum()))
    worst = max(error / norm for error, norm in zip(errors, norms, strict=True))
    return {"total": (sum(errors) / sum(norms)) ** 0.5, "worst": worst**0.5}


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
