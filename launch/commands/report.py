"""``sheetbend report``: one report over one or many runs."""

from collections.abc import Sequence
from pathlib import Path

from launch import cli, interrupts
from launch.commands.words import Parser

DESCRIPTION = """\
Put what runs have measured into one report: report.md with its plots, and
report.html, which is one file to send or keep.

  sheetbend report runs/quickstart
  sheetbend report runs/seed-0 runs/seed-1 runs/seed-2 --output runs/report

Runs that differ in the seed alone are averaged; others stand side by side.
Searches and adaptations in a run's folder are taken in. Nothing is measured
again, and no folder of a run is changed.
"""
KEPT = "\ninterrupted: nothing was written"


def parser() -> Parser:
    """Return the parser of all options."""
    result = Parser("report", "RUN... [options]", DESCRIPTION)
    result.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder with run folders in it")
    result.add_argument(
        "--output", metavar="FOLDER", help="where to write; by default `report` in the folder that all RUNs stand in"
    )
    result.add_argument("--title", metavar="TEXT", help="the heading; made from the folders' names by default")
    result.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return result


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    options = parser().read(words)
    if "" in options.runs:
        cli.fail("RUN is empty; give the folder of a run")
    if getattr(options, "output", "x") == "":
        cli.fail("--output is empty; give a folder, or leave it out")
    folders = [Path(word) for word in options.runs]
    if getattr(options, "title", "x").strip() == "":
        cli.fail("--title is empty; give some words, or leave it out")
    with cli.interruptible():
        from launch.reporting import default_output, write_report
        from mergers.errors import SheetbendError
    try:
        output = Path(options.output) if "output" in options else default_output(folders)
        written = write_report(folders, output, getattr(options, "title", None))
    except SheetbendError as error:
        cli.fail(str(error))
    except KeyboardInterrupt:
        interrupts.stop(KEPT)
    if "quiet" not in options:
        pictures = len(written) - 2
        print(f"{written[0]}: {pictures} picture{'s' * (pictures != 1)} in {output / 'plots'}")
        print(f"{written[1]}: one file, {written[1].stat().st_size / 1e6:.1f} MB, to be opened in a browser")
