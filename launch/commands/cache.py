"""``sheetbend cache``: what is kept on disk between runs."""

import argparse
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from launch import cli
from launch.commands.words import Parser

if TYPE_CHECKING:
    from mergers.cache import CacheEntry

DESCRIPTION = """\
Show what is kept between runs, or clear it.

  sheetbend cache
  sheetbend cache clear
  sheetbend cache clear images tables
  sheetbend cache clear alignments --older-than 30

The folder is $SHEETBEND_CACHE, by default ~/.cache/sheetbend. It holds
alignments of adapters (20 GB at most), decoded images (as much as
data.init_args.image_cache_gb says), class vectors of heads, tables of
examples, and the checks that prepare has done. Clearing costs time later,
nothing else. Alignments and images that a running process uses stay; clear
the rest while nothing runs. What was downloaded from the hub is not in here:
`hf cache` shows and removes that.
"""


class Cache(Protocol):
    """One kind of what is kept."""

    folder: Path

    def entries(self) -> "list[CacheEntry]":
        """Return all entries, those not used for longest first."""

    def clear(self, unused_days: float = 0.0) -> "list[CacheEntry]":
        """Remove the entries that were not used for ``unused_days`` days, and return them."""


def parser() -> Parser:
    """Return the parser of all options."""
    result = Parser("cache", "[show|clear] [KIND...] [options]", DESCRIPTION)
    result.add_argument("action", nargs="?", choices=("show", "clear"), default="show", metavar="show|clear")
    result.add_argument(
        "kinds", nargs="*", choices=[*KINDS, []], default=[], metavar="KIND", help=f"some of {', '.join(KINDS)}"
    )
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


@dataclass
class Files:
    """Entries that no process holds open: files, or folders, some levels below the cache's folder.

    Attributes:
        folder: where they are.
        depth: how many levels down an entry is.
    """

    folder: Path
    depth: int = 1

    def entries(self) -> "list[CacheEntry]":
        """Return all entries, those not used for longest first."""
        from mergers.cache import CacheEntry

        paths = self.folder.glob("/".join("*" * self.depth))
        found = [CacheEntry(path, *_size_and_use(path)) for path in paths if not path.name.endswith(".lock")]
        return sorted(found, key=lambda entry: (entry.used, entry.path.name))

    def clear(self, unused_days: float = 0.0) -> "list[CacheEntry]":
        """Remove the entries that were not used for ``unused_days`` days, and return them."""
        limit = time.time() - 24 * 3600 * unused_days
        removed = []
        for entry in self.entries():
            if entry.used > limit:
                continue
            if entry.path.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                entry.path.unlink(missing_ok=True)
            if not entry.path.exists():
                removed.append(entry)
        return removed


def _size_and_use(path: Path) -> tuple[int, float]:
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    stats = [file.stat() for file in files] or [path.stat()]
    used = max(max(stat.st_mtime, stat.st_atime) for stat in stats)
    return sum(stat.st_size for stat in stats) if files else 0, used


def _alignments(folder: Path) -> Cache:
    from mergers.cache import AlignmentCache

    return AlignmentCache(folder=folder)


def _images(folder: Path) -> Cache:
    if not folder.is_dir():  # a look at nothing needs no second of imports
        return Files(folder)
    from datamodules.image_cache import ImageCache

    return ImageCache(0, folder)


# What is kept, by the name of its folder. The library that keeps tables puts them into
# <kind of file>/<configuration>/<version>/<hash>.
KINDS: dict[str, Callable[[Path], Cache]] = {
    "alignments": _alignments,
    "images": _images,
    "heads": Files,
    "tables": lambda folder: Files(folder, depth=4),
    "prepared": Files,
}


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    options = parser().read(words)
    if "older_than" in options and options.action != "clear":
        cli.fail("--older-than belongs to clear: sheetbend cache clear --older-than DAYS")
    with cli.interruptible():
        from mergers.errors import SheetbendError
        from mergers.files import cache_folder
    try:
        caches = {kind: KINDS[kind](cache_folder(kind)) for kind in options.kinds or KINDS}
    except SheetbendError as error:
        cli.fail(str(error))
    if options.action == "clear":
        _clear(caches, getattr(options, "older_than", 0.0))
    else:
        _show(caches)


def _show(caches: dict[str, Cache]) -> None:
    from launch.commands.screen import console, show, size, table

    result = table("cache", "entries", "size", "last used", "oldest")
    for kind, cache in caches.items():
        entries = cache.entries()
        ages = [_ago(entries[-1]), _ago(entries[0])] if entries else ["-", "-"]
        result.add_row(kind, str(len(entries)), size(sum(entry.size for entry in entries)), *ages)
    screen = console()
    show(screen, result)
    show(screen, f"\n{next(iter(caches.values())).folder.parent}")


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


def _clear(caches: dict[str, Cache], days: float) -> None:
    from launch.commands.screen import size

    stuck = []
    for cache in caches.values():
        before = len(cache.entries())
        removed = cache.clear(days)
        left = before - len(removed)
        kept = f", {left} kept" if left else ""
        print(f"removed {len(removed)} entries of {cache.folder}, {size(sum(entry.size for entry in removed))}{kept}")
        if left and not days:
            stuck.append(f"{left} entries of {cache.folder}")
    if stuck:
        cli.fail(f"{', '.join(stuck)} are in use or may not be removed; try again later, or as the folder's owner")
