"""What becomes of one input: accepted, rejected in one line, or crashed; and everything that must not happen."""

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launch.cli import main
from mergers import SheetbendError

ACCEPTED, REJECTED, CRASHED = "accepted", "rejected", "crashed"
SECONDS = 10  # of work, after which an input hangs; the slowest honest ones take a tenth of it
MEMORY = 400 * 2**20  # bytes by which one input may raise the peak of the process
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events that name the path they change in their first arguments.
_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2}
_CHANGES |= {"os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 0}
# Audit events of code that is run, or of somebody who is asked.
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "webbrowser.open")


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Outcome:
    """What became of one input; ``said`` is its one line, or what went wrong."""

    verdict: str
    said: str = ""


@dataclass
class Sandbox:
    """A folder in which inputs lie, with one place where they may cause writing.

    Attributes:
        root: everything; ``outside`` in it is what hostile names point to.
    """

    root: Path
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (self.inputs, self.output, self.outside, self.cache, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        (self.outside / "precious").write_text("precious")

    @property
    def inputs(self) -> Path:
        """Where the input is laid; never written to by a target."""
        return self.root / "inputs"

    @property
    def output(self) -> Path:
        """The only folder that may change."""
        return self.root / "output"

    @property
    def outside(self) -> Path:
        """What hostile names point to."""
        return self.root / "outside"

    @property
    def cache(self) -> Path:
        """Of Sheetbend and of the hub's libraries."""
        return self.root / "cache"

    @property
    def scratch(self) -> Path:
        """For temporary files."""
        return self.root / "scratch"

    @property
    def canary(self) -> Path:
        """A file that only code inside an input would make."""
        return self.outside / "canary"

    def fresh(self) -> Path:
        """Empty the places of input and output; return that of input."""
        for folder in (self.inputs, self.output):
            _emptied(folder)
        return self.inputs

    def snapshot(self) -> dict[str, tuple]:
        """Return what lies outside the places that may change."""
        found = {}
        for place in (self.inputs, self.outside):
            for folder, _, files in os.walk(place):
                for name in files:
                    path = os.path.join(folder, name)  # noqa: PTH118  some names are no paths of Python's
                    stat = os.lstat(path)
                    found[path] = (stat.st_size, stat.st_mtime_ns)
        return found

    def may_write(self, path: str) -> bool:
        """Return whether a path is one of those that may change."""
        if path in ("/dev/null", "/dev/tty") or path.startswith(("/dev/shm/", "/proc/self/")):
            return True
        real = os.path.realpath(path) if not path.endswith(os.sep) else path.rstrip(os.sep)
        allowed = (self.output, self.cache, self.scratch)
        return any(real == str(one) or real.startswith(f"{one}{os.sep}") for one in map(os.path.realpath, allowed))

    def look_at(self, event: str, arguments: tuple) -> None:
        """Note an audit event of Python that no input may cause."""
        if event == "open" and isinstance(arguments[0], str | bytes):
            _, mode, flags = arguments
            writes = set(mode or "") & set("wax+") if mode else (flags or 0) & _WRITING
            if writes and "__pycache__" not in os.fsdecode(arguments[0]):
                self._require(event, arguments[0])
        elif event in _CHANGES:
            for path in arguments[: _CHANGES[event]]:
                if isinstance(path, str | bytes | os.PathLike):  # a link itself is changed, not what it leads to
                    folder, name = os.path.split(_below(path, arguments[-1]))
                    self._require(event, os.path.join(os.path.realpath(folder), name) + os.sep)  # noqa: PTH118
        elif event in _NEVER:
            self.violations.append(f"{event} {arguments[:2]!r}"[:300])

    def _require(self, event: str, path: str | bytes | os.PathLike) -> None:
        with contextlib.suppress(ValueError):
            if not self.may_write(os.fsdecode(path)):
                self.violations.append(f"{event} {os.fsdecode(path)!r}")


def _below(path: str | bytes | os.PathLike, folder: object) -> str:
    """Return a path that may be relative to an open folder, as `shutil.rmtree` has them."""
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):  # noqa: PTH117
        with contextlib.suppress(OSError):
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # noqa: PTH115, PTH118
    return path


_watched: list[Sandbox] = []


def _audit(event: str, arguments: tuple) -> None:
    if _watched:
        _watched[-1].look_at(event, arguments)


_hooked = False


@contextlib.contextmanager
def watching(sandbox: Sandbox) -> Iterator[None]:
    """Note everything in the block that an input must not cause."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _watched.append(sandbox)
    try:
        yield
    finally:
        _watched.pop()


@contextlib.contextmanager
def sandbox_of(folder: Path) -> Iterator[Sandbox]:
    """Yield a sandbox in ``folder``; temporary files and caches of all libraries go there meanwhile."""
    sandbox = Sandbox(folder)
    names = {"SHEETBEND_CACHE": sandbox.cache / "sheetbend", "MPLCONFIGDIR": sandbox.cache / "mpl"}
    before, temporary = {name: os.environ.get(name) for name in names}, tempfile.tempdir
    os.environ.update({name: str(path) for name, path in names.items()})
    tempfile.tempdir = str(sandbox.scratch)
    try:
        yield sandbox
    finally:
        tempfile.tempdir = temporary
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Limit:
    """Raises `Hang` in its block once the block has worked, or waited, for too long.

    A machine that is busy with other things, or halted, is no hang: time that this process did not get counts a sixth.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._wall, self._work = time.monotonic(), time.process_time()

    @property
    def exceeded(self) -> bool:
        """Whether it has taken too long by now, also where a library has swallowed the exception."""
        waited, worked = time.monotonic() - self._wall, time.process_time() - self._work
        return worked > self.seconds or waited > 6 * self.seconds

    def _ring(self, *_: object) -> None:
        if self.exceeded:
            raise Hang

    def __enter__(self) -> "Limit":
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds / 4)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def attempt(target: Callable[[], object], sandbox: Sandbox, seconds: float = SECONDS) -> Outcome:
    """Run a target on the input that lies in the sandbox, and say what became of it.

    A target is either a call of the library, which may raise `SheetbendError` of one line, or a command, which may
    exit with status 2 and one line on stderr.
    """
    sandbox.violations.clear()
    before, peak, limit = sandbox.snapshot(), _peak(), Limit(seconds)
    out, err = io.StringIO(), io.StringIO()
    try:
        with watching(sandbox), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limit:
            target()
        outcome = Outcome(ACCEPTED)
    except SheetbendError as error:
        outcome = _line(str(error))
    except SystemExit as stop:
        outcome = _exit(stop.code, err.getvalue())
    except Hang:
        outcome = Outcome(CRASHED, f"hang of more than {seconds} s")
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        outcome = Outcome(CRASHED, f"{type(error).__name__} at {place}: {str(error)[:300]}")
    if limit.exceeded:  # some library may have swallowed the alarm
        outcome = Outcome(CRASHED, f"hang of more than {seconds} s")
    if "Traceback" in err.getvalue():
        outcome = Outcome(CRASHED, f"a traceback was printed: {err.getvalue()[-300:]}")
    if sandbox.violations:
        outcome = Outcome(CRASHED, f"forbidden: {'; '.join(sandbox.violations[:3])}")
    if sandbox.canary.exists():
        sandbox.canary.unlink()
        outcome = Outcome(CRASHED, "code of the input was run")
    elif not sandbox.violations and sandbox.snapshot() != before:
        outcome = Outcome(CRASHED, "a file outside the output folder was changed")
    if _peak() - peak > MEMORY:
        outcome = Outcome(CRASHED, f"took {(_peak() - peak) / 2**20:.0f} MiB more memory")
    return outcome


def command(*words: object) -> Callable[[], None]:
    """Return a target that runs a command of Sheetbend."""
    return lambda: main([str(word) for word in words])


def _line(text: str) -> Outcome:
    if not text or re.search(r"[\n\r]", text) or len(text) > 3000:
        return Outcome(CRASHED, f"refused in something else than one line: {text[:300]!r} ({len(text)} characters)")
    return Outcome(REJECTED, text)


def _exit(code: object, err: str) -> Outcome:
    if code in (0, None):
        return Outcome(ACCEPTED)
    lines = [line for line in err.splitlines() if not line.startswith("sheetbend: warning: ")]
    errors = [line for line in lines if line.startswith("sheetbend: error: ")]
    if code != 2 or len(errors) != 1:
        return Outcome(CRASHED, f"exit {code!r}: {err[-300:]!r}")
    if lines[-1] != errors[0]:
        return Outcome(CRASHED, f"more lines after the error: {err[-300:]!r}")
    return _line(errors[0])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
