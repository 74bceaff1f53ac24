"""The command line: ``sheetbend fit | validate | test`` with YAML configs."""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

PROGRAM = "sheetbend"
USER_FAULT = 2
EARLY = "\ninterrupted before the run began; nothing was lost, the same command starts again"
INTERRUPTED = 130  # what shells report of a program that SIGINT ended

# Lightning's advice that does not hold here, by the start of its message.
BENIGN_WARNINGS = (
    ".*does not have many workers",
    ".*`training_step` returned `None`",  # the empty turn of a task that has stopped early
    ".*Checkpoint directory .* exists and is not empty",
    ".*exists and is not empty",
    ".*number of training batches .* is smaller than the logging interval",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    ".*is_gradient_checkpointing",
    ".*The dirpath has changed from",  # a run folder may be moved
    ".*lr_scheduler.step.*before.*optimizer.step",
    ".*Trying to infer the `batch_size`",
)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit with status 2 and one line for what the user can fix.

    Args:
        args: words of the command line; those of the process by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    for pattern in BENIGN_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a class_path may name a module of the user's own, beside the command
    try:
        _run(words)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print(EARLY, flush=True)
        raise SystemExit(INTERRUPTED) from None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once: imports take seconds, and some of them swallow a KeyboardInterrupt."""

    def leave(*_: object) -> NoReturn:
        os.write(sys.stdout.fileno(), f"{EARLY}\n".encode())
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(words: list[str]) -> None:
    with _interruptible():
        from launch.lightning_cli import SheetbendCLI
        from mergers.errors import SheetbendError

    _quiet_libraries()
    try:
        SheetbendCLI(words)
    except SheetbendError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(USER_FAULT)


def _quiet_libraries() -> None:
    """Leave the screen to our own output; warnings come through, on one line. Lightning sets both when imported."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: warning: {message}\n"
