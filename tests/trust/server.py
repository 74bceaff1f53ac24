"""Commands in children of a process that has imported everything, ended wherever a test says.

Starting Python and importing PyTorch takes ten seconds, a command on tiny work one or two. So one process imports all
that the commands need, and each run is a fork of it, which is the same to the command: it has its own memory, its own
environment, and can be killed. `Server` is the side of the tests; ``python -m tests.trust.server`` is the other.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0  # seconds after which a command counts as one that does not end
PROMPT = 2.0  # seconds in which a command ends that is interrupted
# What Python says before it changes a file system.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Job:
    """A command, and where it ends.

    Attributes:
        words: of the command line.
        folder: everything that it writes is below; it runs there.
        environment: what it has beside the environment of the tests.
        setup: ``module:function`` that is called first, with the folder.
        kill_after: seconds after which SIGKILL ends it; none: it may go on to its end.
        kill_before: number of the change of the file system below ``folder`` before which SIGKILL ends it, from 0.
        interrupt_after: seconds of the command's own work after which SIGINT goes to it and to its workers, as a
            terminal sends it.
        interrupt_before: number of the change of the file system before which SIGINT goes to them, or the change.
        interrupt_again: seconds after which another SIGINT follows.
        act_before: (number of a change, ``module:function``) that is called with the folder before that change.
        user: number of the user and group that it runs as; by default those of the tests.
    """

    words: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    setup: str | None = None
    kill_after: float | None = None
    kill_before: int | None = None
    interrupt_after: float | None = None
    interrupt_before: int | str | None = None
    interrupt_again: float | None = None
    act_before: tuple[int, str] | None = None
    user: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status, or minus the number of the signal.
        seconds: it took.
        out: what it printed.
        err: what it printed to stderr.
        changes: what it changed below its folder, in order, such as ``os.rename run/.a.x run/a``.
        units: what it has worked on, as ``setup`` notes it by `note`, such as one line a step of training.
        waited: seconds from the last SIGINT to its end; none if it had ended before.
        alive: processes that it has left behind: those that lived `PROMPT` after SIGINT, or as it ended.
    """

    status: int
    seconds: float
    out: str
    err: str
    changes: tuple[str, ...]
    units: tuple[str, ...]
    waited: float | None
    alive: tuple[str, ...]

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


class Server:
    """The process that forks; close it at the end."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def run(self, job: Job) -> Ended:
        """Run a command in a new process, to its end or to where it is killed."""
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(job).items()}
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(**answer | {name: tuple(answer[name]) for name in ("changes", "units", "alive")})

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Answer one line of JSON on stdin after the other."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    _import_everything()
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job["folder"])
        scratch = folder.parent / f"{folder.name}.scratch"
        scratch.mkdir(exist_ok=True)
        scratch.chmod(0o777)  # the command may run as another user
        (scratch / "units").unlink(missing_ok=True)
        (scratch / "interrupted").unlink(missing_ok=True)
        began = time.monotonic()
        ready, begins = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ready)
            _run(job, folder, scratch, begins)
        os.close(begins)
        if job["interrupt_after"] is not None and os.read(ready, 1):  # before that it is not the command's own work
            _interrupt(child, scratch, job["interrupt_after"])
        if job["interrupt_again"] is not None:
            _interrupt_again(child, scratch, job["interrupt_again"])
        status = _wait(child, job["kill_after"])
        ended = time.monotonic()
        os.close(ready)
        signalled = float(_text(scratch / "interrupted") or "nan")
        left = alive(child, until=signalled + PROMPT)
        with contextlib.suppress(ProcessLookupError):  # workers of its own, if any
            os.killpg(child, signal.SIGKILL)
        answer: dict[str, Any] = {"status": status, "seconds": ended - began, "alive": left}
        answer["waited"] = None if signalled != signalled else ended - signalled
        answer |= {name: _text(scratch / name) for name in ("out", "err")}
        answer |= {name: _text(scratch / name).splitlines() for name in ("changes", "units")}
        print(json.dumps(answer), file=answers, flush=True)


def note(unit: str) -> None:
    """Note, in the process of a command, that it has worked on something."""
    folder = Path.cwd()
    descriptor = os.open(
        folder.parent / f"{folder.name}.scratch" / "units", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666
    )
    os.write(descriptor, f"{unit}\n".encode())
    os.close(descriptor)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _import_everything() -> None:
    names = [
        "callbacks",
        "datamodules",
        "launch.lightning_cli",
        "launch.downloads",
        "launch.checked_data",
        "mergers.output",
    ]
    names += [
        "launch.commands.merge",
        "launch.commands.merge_screen",
        "launch.commands.prepare",
        "launch.commands.adapters",
    ]
    names += [
        "launch.reporting.content",
        "mergers.preflight",
        "datasets.load",
        "optuna",
        "pyarrow.parquet",
        "tests.stand_ins",
    ]
    names += ["matplotlib.backends.backend_agg", "transformers.models.clip.modeling_clip", "torch.utils.tensorboard"]
    names += ["transformers.models.clip.image_processing_clip", "peft.tuners.lora", "tests.prepared_model"]
    for name in names:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)  # a fork has none of the others


def _wait(child: int, seconds: float | None) -> int:
    """Wait for a process; end it after so many seconds."""
    handle = os.pidfd_open(child)
    try:
        ready, _, _ = select.select([handle], [], [], DEADLINE if seconds is None else seconds)
        if not ready:
            os.killpg(child, signal.SIGKILL) if _leads(child) else os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _interrupt(child: int, scratch: Path, seconds: float) -> None:
    """Send SIGINT to a command and its workers after so many seconds, unless it has ended."""
    handle = os.pidfd_open(child)
    if not select.select([handle], [], [], seconds)[0]:
        (scratch / "interrupted").write_text(str(time.monotonic()))
        os.killpg(child, signal.SIGINT)
    os.close(handle)


def _interrupt_again(child: int, scratch: Path, seconds: float) -> None:
    """Send another SIGINT so many seconds after the first, which the command may send to itself."""
    handle = os.pidfd_open(child)
    while not (scratch / "interrupted").exists() and not select.select([handle], [], [], 0.01)[0]:
        pass
    os.close(handle)
    _interrupt(child, scratch, seconds)


def alive(session: int, until: float) -> list[str]:
    """Return the processes of a session, with what they are; wait so long for none to be left."""
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if entry.name.isdecimal():
                    name, _, numbers = (entry / "stat").read_text().rpartition(")")
                    state, _, _, own = numbers.split()[:4]
                    if int(own) == session and state not in "ZX":  # ended, whether or not anybody has noticed
                        found.append(f"{name}) {(entry / 'cmdline').read_bytes().decode()}")
        if not found or not time.monotonic() < until:
            return found
        time.sleep(0.01)


def _leads(child: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(child) == child
    return False


def _run(job: Mapping[str, Any], folder: Path, scratch: Path, begins: int) -> None:
    """Be the command; does not return."""
    os.setsid()
    for number, name in ((0, os.devnull), (1, scratch / "out"), (2, scratch / "err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o666), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, buffering=1) for number, mode in enumerate("rww"))
    os.environ.update(job["environment"])
    os.chdir(folder)
    sys.argv = ["sheetbend", *job["words"]]
    status = 1
    try:
        if job["setup"]:
            _named(job["setup"])(folder)
        _watch(folder, scratch, job)
        if job["user"] is not None:
            os.setgroups([])
            os.setgid(job["user"])
            os.setuid(job["user"])
        from launch.cli import program

        os.write(begins, b"!")
        program(job["words"])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    threading._shutdown()  # as the interpreter does: whatever waits for threads or workers takes its time here
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _watch(folder: Path, scratch: Path, job: Mapping[str, Any]) -> None:
    """Note every change below ``folder`` before it is made; end the process, or act, at the one that is asked for."""
    log = os.open(scratch / "changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    prefix, count = f"{folder}/", 0
    number, action = job["act_before"] or (None, None)
    interrupt = job["interrupt_before"]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, number, interrupt
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & WRITING:
                return
            places = arguments[:1]
        elif event in CHANGES:
            places = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
        else:
            return
        names = [os.path.abspath(os.fsdecode(one)) for one in places if isinstance(one, str | bytes | os.PathLike)]  # noqa: PTH100  not what a link points to
        if not any(name.startswith(prefix) for name in names):
            return
        change = f"{event} {' '.join(os.path.relpath(name, folder) for name in names)}"
        if count == job["kill_before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if interrupt in (count, change):
            interrupt = None
            (scratch / "interrupted").write_text(str(time.monotonic()))
            os.killpg(0, signal.SIGINT)
        if count == number:
            number = None
            _named(action)(folder)
        count += 1
        os.write(log, f"{change}\n".encode())

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()
