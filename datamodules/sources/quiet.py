"""The libraries that download and convert: progress bars on a terminal only, and no log lines."""

import contextlib
import logging
import sys
from collections.abc import Iterator

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

BARS = (
    (datasets.are_progress_bars_disabled, datasets.disable_progress_bars, datasets.enable_progress_bars),
    (are_progress_bars_disabled, disable_progress_bars, enable_progress_bars),
)


@contextlib.contextmanager
def quiet_libraries(bars: bool = True) -> Iterator[None]:
    """Show progress bars in the block where stderr is a terminal; what goes wrong is said by the error alone.

    Args:
        bars: false shows none anywhere.
    """
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    hidden = [] if bars and sys.stderr.isatty() else [bar for bar in BARS if not bar[0]()]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for _, disable, _ in hidden:
        disable()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for _, _, enable in hidden:
            enable()
