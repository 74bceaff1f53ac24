"""Ctrl-C and SIGTERM: a command ends soon, whatever it is in the middle of, and its workers with it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from launch.processes import is_first

INTERRUPTED = 130  # what shells report of a program that SIGINT ended
TERMINATED = 143  # the same of SIGTERM
STATUS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
PATIENCE = 1.5  # seconds in which a command may tidy up, before it is ended as SIGKILL would end it
UNTIDY = "\ninterrupted: what was finished is kept; give the same command again"


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
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_end_in_time, args=(watch, reading), name="interrupts", daemon=True)
    thread.start()
    wakeup, hook = signal.set_wakeup_fd(writing, warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = _quiet_about_interrupts(hook)
    handlers = {number: signal.getsignal(number) for number in STATUS if not ignored(number)}
    try:
        for number in handlers:
            signal.signal(number, _handle)
        yield
        if came():  # some library has swallowed it
            stop(UNTIDY)
    except (Exception, KeyboardInterrupt):
        if not came():
            raise
        stop(UNTIDY)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        watch.ended.set()
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook, _watch = hook, None
        os.write(writing, b"\0")  # closing it does not end the thread: workers have it open too
        thread.join()
        os.close(writing)
        os.close(reading)


def listen() -> None:
    """Let a second Ctrl-C end the process again, after Lightning has switched it off."""
    if _watch is not None and not _watch.deaf:
        signal.signal(signal.SIGINT, _handle)


def came() -> bool:
    """Return whether Ctrl-C came."""
    return _watch is not None and _watch.came == signal.SIGINT


def say(message: str) -> None:
    """Print what is kept, unless that was said; of several processes the first says it."""
    if _speaks(_watch):
        print(message, flush=True)


def stop(message: str) -> NoReturn:
    """Say what is kept, and exit as interrupted."""
    say(message)
    raise SystemExit(INTERRUPTED)


def leave(status: int) -> NoReturn:
    """End the process and its workers here and now."""
    workers = sys.modules.get("multiprocessing")
    with contextlib.suppress(RuntimeError):  # the main thread has just begun another
        for worker in workers.active_children() if workers else ():
            worker.kill()
    os._exit(status)


def _handle(number: int, frame: FrameType | None) -> NoReturn:
    if _watch is not None:
        if _watch.came is not None:
            _say_untidy(_watch)
            leave(STATUS[number])
        _watch.came = number
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    raise KeyboardInterrupt


def _end_in_time(watch: _Watch, reading: int) -> None:
    """Wait for a signal in a thread: handlers wait for the main thread, which may compute for minutes."""
    while not watch.ended.is_set():
        number = os.read(reading, 1)[0]
        if number in STATUS and not watch.ended.wait(PATIENCE):
            _say_untidy(watch)
            leave(STATUS[number])


def _say_untidy(watch: _Watch) -> None:
    if _speaks(watch):
        with contextlib.suppress(OSError, ValueError):  # nobody reads
            os.write(sys.stdout.fileno(), f"{UNTIDY}\n".encode())


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
