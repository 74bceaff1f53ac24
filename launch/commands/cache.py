"""``sheetbend cache``: what is kept on disk between merges."""

import argparse
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch import cli
from launch.commands.words import Parser

if TYPE_CHECKING:
    from mergers.cache import AlignmentCache, CacheEntry

DESCRIPTION = """\
Show the cache of alignments, or clear it.

  sheetbend cache
  sheetbend cache clear
  sheetbend cache clear --older-than 30

The folder is $SHEETBEND_CACHE/alignments, by default
~/.cache/sheetbend/alignments. A merge in an aligned space (knots, core) keeps
its alignments there, and later ones of the same adapters read them. What was
not used for longest is removed above 20 GB. Clearing costs time at the next
merge, nothing else.
"""


def parser() -> Parser:
    """Return the parser of all options."""
    result = Parser("cache", "[show|clear] [options]", DESCRIPTION)
    result.add_argument("action", nargs="?", choices=("show", "clear"), default="show", metavar="show|clear")
    result.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="with clear: keep what was used in these last days"
    )
    return result


def _days(word: str) -> float:
    """Return a number of days."""
    try:
        days = float(word)
    except ValueError:
        days = -1.0
    if not (math.isfinite(days) and days >= 0):
        raise argparse.ArgumentTypeError(f"give a number of days from 0 on, not {word!r}")
    return days


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    options = parser().read(words)
    if "older_than" in options and options.action != "clear":
        cli.fail("--older-than belongs to clear: sheetbend cache clear --older-than DAYS")
    with cli.interruptible():
        from mergers.cache import AlignmentCache
        from mergers.errors import SheetbendError
    try:
        cache = AlignmentCache()
    except SheetbendError as error:
        cli.fail(str(error))
    if options.action == "clear":
        _clear(cache, getattr(options, "older_than", 0.0))
    else:
        _show(cache)


def _show(cache: "AlignmentCache") -> None:
    from launch.commands.screen import console, facts, show, size

    entries = cache.entries()
    rows = [("folder", str(cache.folder)), ("entries", str(len(entries)))]
    if entries:
        total = sum(entry.size for entry in entries)
        rows.append(("size", f"{size(total)} of at most {size(cache.max_bytes)}"))
        rows.append(("last used", f"{_ago(entries[-1])} (newest), {_ago(entries[0])} (oldest)"))
    show(console(), facts(*rows))


def _ago(entry: "CacheEntry") -> str:
    """Return how long ago an entry was used.

    >>> from mergers.cache import CacheEntry
    >>> _ago(CacheEntry(None, 0, time.time() - 7200))
    '2 hours ago'
    """
    seconds = max(time.time() - entry.used, 0)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds / length)
        if count:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


def _clear(cache: "AlignmentCache", days: float) -> None:
    from launch.commands.screen import size

    before = len(cache.entries())
    removed = cache.clear(days)
    freed = size(sum(entry.size for entry in removed))
    left = before - len(removed)
    kept = f", {left} kept" if left else ""
    print(f"removed {len(removed)} entries of {cache.folder}, {freed}{kept}")
    if left and not days:
        cli.fail(f"{left} entries of {cache.folder} may not be removed; remove them as the folder's owner")
