"""Ctrl-C and SIGTERM: a command ends soon, whatever it is in the middle of, and its workers with it."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from launch.processes import is_first

INTERRUPTED = 130  # what shells report of a program that SIGINT ended
TERMINATED = 143  # the same of SIGTERM
STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
PATIENCE = 1.2  # seconds in which a command may tidy up, before it is ended as SIGKILL would end it
ONE = 0.1  # seconds in which a second signal is the same one, such as a terminal's that a parent hands on
UNTIDY = "what was finished is kept; give the same command again"


class _Watch:
    """What is known of the command that runs."""

    def __init__(self) -> None:
        self.came: int | None = None  # the first signal
        self.said = False  # what is kept
        self.deaf = ignored(signal.SIGINT)
        self.ended = threading.Event()


_watch: _Watch | None = None


def ignored(number: int) -> bool:
    """Return whether a signal is ignored, as shells have it for what a script starts in the background."""
    return signal.getsignal(number) == signal.SIG_IGN


def _forget() -> None:
    # A terminal sends Ctrl-C to workers too. They are ended by who began them, and say nothing.
    global _watch
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Raise KeyboardInterrupt at Ctrl-C and SystemExit at SIGTERM; end the process at a second one, or if it is slow.

    It is slow in long computations, which Python does not interrupt, while it waits for threads or workers, and where
    some library swallows the KeyboardInterrupt. Files are safe: they come into being as if SIGKILL could come any time.
    """
    global _watch
    nested = _watch is not None
    if nested or threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    watch = _watch = _Watch()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    thread = threading.Thread(target=_end_in_time, args=(watch, reading), name="interrupts", daemon=True)
    thread.start()
    wakeup, hook = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = _quiet_about_interrupts(hook)
    handlers = {number: signal.getsignal(number) for number in STATUS if not ignored(number)}
    try:
        for number in handlers:
            signal.signal(number, _handle)
        yield
        if watch.came is not None:  # some library has swallowed it
            _stop(watch)
    except BaseException as error:
        if watch.came is None or (isinstance(error, SystemExit) and error.code == STATUS[watch.came]):
            raise
        _stop(watch)  # what the interruption broke
    finally:
        watch.ended.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook, _watch = hook, None
        writing.send(b"\0")  # closing it does not end the thread: workers have it open too
        thread.join()
        writing.close()
        reading.close()


def listen() -> None:
    """Let a second Ctrl-C come through again, after Lightning has switched it off."""
    if _watch is not None and not _watch.deaf:
        signal.signal(signal.SIGINT, _handle)


def came() -> bool:
    """Return whether Ctrl-C or SIGTERM came."""
    return _watch is not None and _watch.came is not None


def check() -> None:
    """Exit as interrupted or terminated if it was: what fails then fails since it was."""
    if _watch is not None and _watch.came is not None:
        _stop(_watch)


def say(message: str) -> None:
    """Print what is kept, unless that was said; of several processes the first says it."""
    if _speaks(_watch):
        with contextlib.suppress(OSError, ValueError):  # nobody reads
            print(message, flush=True)


def stop(message: str) -> NoReturn:
    """Say what is kept, and exit as interrupted."""
    say(message)
    raise SystemExit(INTERRUPTED)


def leave(status: int, message: str = "") -> NoReturn:
    """End the process and its workers here and now."""
    try:
        if message:
            os.write(sys.stdout.fileno(), f"\n{message}\n".encode())
        if workers := sys.modules.get("multiprocessing"):
            for worker in workers.active_children():
                worker.kill()
    finally:  # nobody may read, and the main thread may be about to begin a worker
        os._exit(status)


def _stop(watch: _Watch) -> NoReturn:
    say(f"\n{WORDS[watch.came]}: {UNTIDY}")
    raise SystemExit(STATUS[watch.came])


def _handle(number: int, frame: FrameType | None) -> None:
    watch = _watch
    if watch is None or watch.came is not None or watch.ended.is_set():  # a second one is for `_end_in_time`
        return
    watch.came = number
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    raise KeyboardInterrupt


def _end_in_time(watch: _Watch, reading: socket.socket) -> None:
    """Wait for signals in a thread: handlers wait for the main thread, which may compute for minutes."""
    first, since = None, 0.0
    while not watch.ended.is_set():
        reading.settimeout(None if first is None else max(since + PATIENCE - time.monotonic(), 1e-3))
        try:
            number = reading.recv(1)[0]
        except TimeoutError:
            number = first
        if watch.ended.is_set() or number not in STATUS:
            continue
        if first is None:
            first, since = number, time.monotonic()
        elif time.monotonic() - since > ONE:
            leave(STATUS[number], f"{WORDS[number]}: {UNTIDY}" if _speaks(watch) else "")


def _speaks(watch: _Watch | None) -> bool:
    """Return whether what is kept is still to be said, which it is from then on."""
    if watch is not None and watch.said:
        return False
    if watch is not None:
        watch.said = True
    return is_first()  # a terminal sends Ctrl-C to every process


def _quiet_about_interrupts(hook):
    """Return a hook that passes over what an interrupt broke where nothing can be raised, such as in destructors."""

    def quiet(unraisable) -> None:
        if not came():
            hook(unraisable)

    return quiet
