"""``sheetbend prepare``: all that a run reads is brought here and looked at, before the run."""

import contextlib
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import cli, interrupts
from launch.commands.words import Parser, flag, spelled

if TYPE_CHECKING:
    from rich.console import Console

    from launch.checked_data import Checked
    from launch.downloads import Found
    from launch.lightning_cli import ConfigurationOnly

DESCRIPTION = """\
Download what a run reads, and check it, before the run.

  sheetbend prepare --config configs/experiments/knots_vit_b32.yaml
  sheetbend prepare --config my.yaml --data.init_args.root ~/data --dry-run

The configuration is that of fit, and every option of fit is taken too. First
it says what is needed, how much of it is here, and how long the rest will
take; then it downloads, and goes on where an earlier download was cut off;
then it checks each task: number of examples, names of labels, overlaps.
"""
KEPT = "\ninterrupted: what has come is kept; the same command goes on from there"
OWN = ("--dry-run", "--mbit", "--fill-image-cache", "--quiet")
BITS = 8
_DIGITS = 8


def parser() -> Parser:
    """Return the parser of the options that fit does not have."""
    result = Parser("prepare", "--config FILE [options] [options of fit]", DESCRIPTION)
    result.add_argument("--config", "-c", metavar="FILE", action="append", help="configuration of the run")
    flag(result, "dry-run", "say what is needed and how much of it is missing, and stop")
    result.add_argument(
        "--mbit", type=number_above_zero, metavar="N", help="expect N Mbit/s; without it the speed is measured"
    )
    flag(result, "fill-image-cache", "also decode all pictures into the cache, as the first run would")
    flag(result, "quiet", "print errors only")
    return result


def number_above_zero(word: str) -> float:
    """Return a number above zero."""
    speed = float(word)
    if not 0 < speed < float("inf"):
        raise ValueError(word)
    return speed


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    words = [spelled(word) if spelled(word).partition("=")[0] in OWN else word for word in words]
    options, rest = parser().parse_known_args(words)
    configs = [word for path in getattr(options, "config", []) for word in ("--config", path)]
    if not configs:
        cli.fail("--config missing; give the configuration of a run, such as configs/quickstart.yaml")
    with cli.interruptible():
        from launch.lightning_cli import ConfigurationOnly
        from mergers.errors import SheetbendError
    cli.quiet_libraries()
    try:
        _run(options, ConfigurationOnly([*configs, *rest]))
    except SheetbendError as error:
        cli.fail(str(error))
    except KeyboardInterrupt:
        interrupts.stop(KEPT)


def _run(options: Namespace, configured: "ConfigurationOnly") -> None:
    from launch.commands.screen import console
    from launch.downloads import find, hub_fault, needs
    from mergers.adapters.reachable import unasked

    screen = console(getattr(options, "quiet", False))
    configured.datamodule.quiet = getattr(options, "quiet", False)
    fill = getattr(options, "fill_image_cache", False)
    if fill and not getattr(configured.datamodule, "image_cache_gb", 0):
        cli.fail("--fill-image-cache: the data of this configuration are no pictures with a cache; leave it out")
    needed = needs(configured.model, configured.datamodule)
    on_hub = any(need.on_hub for need in needed)
    no_hub = hub_fault() if on_hub else None
    found = find(needed, no_hub)
    _show_plan(screen, found)
    _fail_all([*configured.datamodule.missing(), *_faults(found, no_hub)])
    _announce(screen, found, getattr(options, "mbit", None))
    if getattr(options, "dry_run", False):
        return
    with contextlib.nullcontext() if on_hub and no_hub is None else unasked():
        fetched = _download(screen, found)
        checked = _check(screen, configured, fill)
    _show_checked(screen, checked)
    _fail_all([fault for one in checked for fault in one.faults])
    known = not fetched and not fill and all(one.recorded for one in checked)
    screen.print("ready: all of it was here and checked before" if known else "ready")


def _faults(found: "Sequence[Found]", no_hub: str | None) -> list[str]:
    """Return why things cannot be had; without the hub one line a kind of what is absent, and what to do about it."""
    from huggingface_hub import constants

    from launch.downloads import absences

    faults = [one.fault for one in found if one.fault]
    absent = absences(found)
    if not absent:
        return faults
    way_out = f"give the same command where it answers and copy {constants.HF_HUB_CACHE}"
    return [*faults, *absent, f"{no_hub}; {way_out}, or put what is missing where the lines above say"]


def _fail_all(faults: Sequence[str]) -> None:
    """Print one line a fault and exit with status 2, if there are any."""
    if faults:
        for fault in faults[:-1]:
            print(f"{cli.PROGRAM}: error: {fault}", file=sys.stderr)
        cli.fail(faults[-1])


# What is needed.


def _show_plan(screen: "Console", found: "Sequence[Found]") -> None:
    from launch.commands.screen import show, size, table

    rows = table("what", "hub id or folder", "size", "to download", left=2)
    for one in found:
        place = one.need.place
        if place is None:
            where = "comes with installed packages"
        else:
            where = str(place.absolute()) if isinstance(place, Path) else place.name
        state = "missing" if one.fault or one.absent else size(one.missing) if one.missing else "here"
        rows.add_row(one.need.user, where, "" if one.size is None else size(one.size), state)
    show(screen, rows)
    screen.print()


def _announce(screen: "Console", found: "Sequence[Found]", mbit: float | None) -> None:
    """Say how much is to be downloaded, where to, and how long it will take; refuse if it does not fit."""
    from launch.commands.screen import facts, show, size

    total = sum(one.missing for one in found)
    if not total:
        screen.print("nothing to download")
        return
    rows = [("download", size(total))]
    for folder, (needed, free) in _disks(found).items():
        rows.append(("disk", f"{size(needed)} of the {size(free)} that are free at {folder}"))
    rows.append(("time", _expected_time(found, total, mbit)))
    show(screen, facts(*rows))
    screen.print()
    for folder, (needed, free) in _disks(found).items():
        if needed > free:
            cli.fail(
                f"the disk of {folder} has {size(free)} left, and {size(needed)} are needed; free some, or give other "
                "folders: HF_HOME for downloads, SHEETBEND_CACHE for the tables that are made of data sets"
            )


def _disks(found: "Sequence[Found]") -> dict[Path, tuple[int, int]]:
    """Return what is needed and what is free on each disk that is written to: downloads, and the tables made of them.

    A table takes about what its files take where they hold pictures, and more where they hold text.
    """
    from huggingface_hub import constants

    from datamodules.sources.hub import Hub
    from mergers.files import cache_folder

    data = sum(one.missing for one in found if isinstance(one.need.place, Hub))
    wanted = {Path(constants.HF_HUB_CACHE): sum(one.missing for one in found), cache_folder("tables"): data}
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in wanted.items():
        there = folder.expanduser().resolve()
        while not there.exists():
            there = there.parent
        first, before = disks.get(there.stat().st_dev, (folder, 0))
        disks[there.stat().st_dev] = first, before + count
    return {folder: (count, shutil.disk_usage(_existing(folder)).free) for folder, count in disks.values() if count}


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())


def _expected_time(found: "Sequence[Found]", total: int, mbit: float | None) -> str:
    from datamodules.sources.downloads import measured_speed
    from launch.commands.screen import duration, size

    if mbit is not None:
        return f"about {duration(total * BITS / (mbit * 1e6))} at {mbit:g} Mbit/s, as given"
    largest = max((one.download for one in found if one.missing), key=lambda download: download.missing)
    speed = measured_speed(largest)
    if speed is None:
        return "unknown; --mbit N expects N Mbit/s"
    return f"about {duration(total / speed)} at {size(speed)}/s, measured on the first bytes of {largest.name}"


# The work.


def _download(screen: "Console", found: "Sequence[Found]") -> int:
    """Bring what is missing; return how many repositories that were."""
    from datamodules.sources.downloads import complete
    from launch.commands.screen import duration, size
    from mergers.adapters.hub import hub_errors

    missing = [one for one in found if one.download is not None and one.download.lacking]
    for number, one in enumerate(missing, 1):
        screen.print(f"[{number}/{len(missing)}] {one.need.user}: {one.download.name}, {size(one.missing)}")
        started = time.monotonic()

        def say(name: str, seconds: float) -> None:
            screen.print(f"    {name} in {duration(seconds)}")

        way_out = f"or give a folder: {one.need.option}" if one.need.option else "or give another"
        again = "the same command goes on where it stopped"
        with hub_errors(str(one.need.place), one.download.revision, way_out, again=again):
            complete(one.download, say)
        screen.print(f"    done in {duration(time.monotonic() - started)}")
    return len(missing)


def _check(screen: "Console", configured: "ConfigurationOnly", fill: bool) -> "list[Checked]":
    """Look at each task's data, or at what was found earlier of the same."""
    from launch.checked_data import Record, check_task, fill_images

    datamodule, results = configured.datamodule, []
    record = Record(datamodule, configured.data_settings, configured.model)
    attached = False
    for task in datamodule.tasks:
        known = None if fill else record.read(task)
        if known is None:
            screen.print(f"checking task {task.name}")
            if not attached:
                datamodule.attach(configured.model)
                attached = True
            known = check_task(datamodule, task)
            if fill and known.fingerprints:
                fill_images(datamodule, task)
            record.write(task, known)
        results.append(known)
    return results


def _show_checked(screen: "Console", checked: "Sequence[Checked]") -> None:
    from launch.commands.screen import show, table

    rows = table("task", "train", "val", "test", "classes", "notes", "fingerprints (train, val, test)")
    for one in checked:
        counts = [f"{one.counts[name]:,}" if name in one.counts else "?" for name in ("train", "val", "test")]
        prints = " ".join(value[:_DIGITS] for value in one.fingerprints.values())
        classes = "" if one.classes is None else str(one.classes)
        rows.add_row(one.task, *counts, classes, str(len(one.notes) or ""), prints or "at fault")
    screen.print()
    show(screen, rows)
    for one in checked:
        for line in one.notes:
            show(screen, f"note: {line}")
    screen.print()
