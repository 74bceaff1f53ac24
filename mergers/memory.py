"""What memory this process holds and has held, and what can still be had."""

import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Control groups by their controllers: of version 2, which have no name, and of version 1. Each with its folder, and the
# names of the limit, of what is used, and of that part of it which is files that need not stay in memory.
_VERSIONS = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


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
    found = [_status("MemAvailable", "/proc/meminfo") or None, _left_in_container()]
    return min((one for one in found if one is not None), default=None)


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


def _left_in_container(own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> int | None:
    """Return what this process's control group, and all above it, may still take; None where nothing limits them."""
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return None
    for controllers, path in groups:
        if controllers in _VERSIONS:
            folder, limit, used, cache = _VERSIONS[controllers]
            top = root / folder
            own_place = top / path.lstrip("/")  # which is not there where a container sees itself as the root
            places = [own_place, *(above for above in own_place.parents if above.is_relative_to(top))]
            found = [_left_in_group(place / limit, place / used, place / "memory.stat", cache) for place in places]
            return min((one for one in found if one is not None), default=None)  # each group takes from those above
    return None


def _left_in_group(limit: Path, used: Path, stat: Path, cache: str) -> int | None:
    try:
        parts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        allowed, taken = (int(file.read_text(encoding="ascii")) for file in (limit, used))
        return max(allowed - taken + int(parts.get(cache, 0)), 0)
    except (OSError, ValueError):  # "max" is no number
        return None
