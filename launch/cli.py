"""The command line: ``sheetbend fit | validate | test`` with YAML configs, and commands that need no model."""

import contextlib
import difflib
import errno
import itertools
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from launch import interrupts
from launch.commands import COMMANDS, command
from launch.interrupts import INTERRUPTED
from launch.processes import is_first

PROGRAM = "sheetbend"
USER_FAULT = 2
LONGEST = 2000  # characters of a message
EARLY = "interrupted before the run began; nothing was lost, the same command starts again"
BROKEN_PIPE = 141  # what shells report of a program that SIGPIPE ended

# Lightning's advice that does not hold here, by the start of its message.
BENIGN_WARNINGS = (
    ".*does not have many workers",  # batches are made from memory or a cache; more workers are the user's choice
    ".*`training_step` returned `None`",  # the empty turn of a task that has stopped early
    ".*Checkpoint directory .* exists and is not empty",  # a run folder that goes on
    ".*exists and is not empty",
    ".*number of training batches .* is smaller than the logging interval",  # every step is logged, by task
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6's, with torch 2.9 and later
    ".*is_gradient_checkpointing",  # transformers' own, in what it calls itself
    ".*The dirpath has changed from",  # a run folder may be moved
    ".*lr_scheduler.step.*before.*optimizer.step",  # a first step that overflowed in float16 was skipped
    ".*Trying to infer the `batch_size`",  # of curves, where each batch counts alike
    ".*in eval mode at the start of training",  # while a merge is learned, dropout is off
)


USAGE = """\
usage: sheetbend COMMAND [options]

Fine-tune LoRA adapters, merge them into one model, and see what merging kept.

commands:
"""
FITTING = {
    "fit": "Train one adapter a task, then test all variants.",
    "validate": "Test on validation data.",
    "test": "Test every variant on every task.",
    "search": "Find the best settings of merges on validation data, then test them once.",
    "analyse": "Draw what merging does: tasks, sides, rank, cka, interference.",
    "adapt": "Learn a merge on unlabelled data (AdaRank), then test all variants.",
}


def program(args: Sequence[str] | None = None) -> None:
    """Be the process of one command: `main`, with an end that Ctrl-C neither delays nor makes noisy.

    Args:
        args: words of the command line; those of the process by default.
    """
    ended = False

    def leave(*_: object) -> NoReturn:
        interrupts.leave(INTERRUPTED, EARLY if not ended and is_first() else "")

    try:
        if not interrupts.ignored(signal.SIGINT):
            signal.signal(signal.SIGINT, leave)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # it was closed: `sheetbend merge ... >&-`
                setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        main(args)
        ended = True
    except SystemExit as stop:
        ended = True
        if stop.code in interrupts.STATUS.values():
            with contextlib.suppress(OSError):  # nobody reads
                sys.stdout.flush()
                sys.stderr.flush()
            interrupts.leave(stop.code)  # Python would wait for threads, each in the middle of something
        raise
    except KeyboardInterrupt:  # at the very beginning, or end
        leave()


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; exit with status 2 and one line for what the user can fix.

    Args:
        args: words of the command line; those of the process by default.
    """
    words = list(sys.argv[1:] if args is None else args)
    _one_line_warnings()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a class_path may name a module of the user's own, beside the command
    with interrupts.prompt():
        _command(words)


def _command(words: list[str]) -> None:
    try:
        if words in (["-h"], ["--help"]):
            print(_help(), end="")
        elif words and words[0] in COMMANDS:
            command(words[0])(words[1:])
        else:
            _run(words)
    except BrokenPipeError:
        if interrupts.came() or not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        if interrupts.came():
            raise
        if error.filename is None and error.errno == errno.ENOSPC:  # of what is printed
            fail("what is printed cannot be written: no space is left on its disk")
        if error.filename is None or error.strerror is None:
            raise
        fail(f"{error.filename}: {error.strerror}")


def _reader_is_gone() -> bool:
    """Return whether whoever reads what is printed has seen enough: ``sheetbend inspect ... | head``."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once: imports take seconds, and some of them swallow a KeyboardInterrupt."""

    def leave(*_: object) -> NoReturn:
        interrupts.leave(INTERRUPTED, EARLY if is_first() else "")

    main_thread = threading.current_thread() is threading.main_thread()  # only there can handlers be set
    if not main_thread or interrupts.ignored(signal.SIGINT):
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help() -> str:
    """Return what commands there are; none is imported."""
    lines = [f"  {name:<10}{what}" for name, what in (*FITTING.items(), *((n, c[0]) for n, c in COMMANDS.items()))]
    return USAGE + "\n".join(lines) + f"\n\n{PROGRAM} COMMAND --help says more.\n"


def _run(words: list[str]) -> None:
    if not words:
        fail(f"no command; give one of {', '.join([*FITTING, *COMMANDS])}, or --help")
    if not words[0].startswith("-") and words[0] not in FITTING:  # importing Lightning takes seconds
        close = difflib.get_close_matches(words[0], [*FITTING, *COMMANDS], n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        fail(f"unknown command {words[0]!r}{guess}; known: {', '.join([*FITTING, *COMMANDS])}")
    with interruptible():
        from launch.lightning_cli import SheetbendCLI
        from mergers.errors import SheetbendError

    quiet_libraries()
    try:
        SheetbendCLI(kinds_as_option(words) if words[0] == "analyse" else words)
    except SheetbendError as error:
        fail(str(error))


def kinds_as_option(words: list[str]) -> list[str]:
    """Return ``analyse tasks cka ...`` with the kinds as an option, after a configuration that may name others.

    >>> kinds_as_option(["analyse", "tasks", "cka", "--config", "a.yaml"])
    ['analyse', '--config', 'a.yaml', '--analysis.kinds', '[tasks, cka]']
    """
    bare = list(itertools.takewhile(lambda word: not word.startswith("-"), words[1:]))
    option = ["--analysis.kinds", f"[{', '.join(bare)}]"] if bare else []
    return [words[0], *words[1 + len(bare) :], *option]


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    interrupts.check()
    print(f"{PROGRAM}: error: {printable(message)}", file=sys.stderr, flush=True)
    raise SystemExit(USER_FAULT)


def printable(message: str) -> str:
    r"""Return a message as one line that the terminal cannot take for commands, and that has an end.

    `mergers.SheetbendError` does the same; importing it takes seconds.

    >>> printable("task 'a\n\x1b[2Jb'")
    "task 'a\\n\\x1b[2Jb'"
    """
    if not message.isprintable():
        message = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in message)
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"


def quiet_libraries() -> None:
    """Leave the screen to our own output; warnings that matter come through, on one line.

    To be called once Lightning has been imported, which sets both.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    _one_line_warnings()
    _quiet_writers()


def _quiet_writers() -> None:
    """Let the threads that write event files fail in silence; whoever waits for them raises the same error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            before(failed)

    threading.excepthook = hook


def _one_line_warnings() -> None:
    for pattern in BENIGN_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    warnings.formatwarning = lambda message, *_, **__: f"{PROGRAM}: warning: {message}\n"
