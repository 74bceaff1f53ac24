"""What memory this process holds and has held, and what can still be had."""

import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def resident_memory() -> int:
    """Return the bytes of memory this process holds now, or held at most where the system does not say."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Return the bytes of memory this process has held at most, 0 where the system does not say."""
    found = _status("VmHWM")
    if found:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int | None:
    """Return the bytes of memory that can still be had, a container's limit considered; None where nothing says so."""
    free = _status("MemAvailable", "/proc/meminfo") or None
    limit, used = (_of_container(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return free
    return min(free or limit, max(limit - used, 0))


def total_memory() -> int | None:
    """Return the bytes of memory of this machine, or None where the system does not say."""
    return _status("MemTotal", "/proc/meminfo") or None


def _status(name: str, path: str = "/proc/self/status") -> int:
    """Return a field of Linux's account of this process in bytes, 0 elsewhere."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _of_container(name: str, root: Path = _CGROUPS) -> int | None:
    """Return a number of this process's control group (version 2), None where it has none, such as no limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        places = [root / own / name, root / name]
        return int(next(place for place in places if place.is_file()).read_text(encoding="ascii"))
    except (OSError, StopIteration, ValueError):  # "max" is no number
        return None
