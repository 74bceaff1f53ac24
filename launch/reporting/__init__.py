"""Reports: what one or many runs measured, as Markdown and as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_report"]


def write_report(folders: Sequence[Path], output: Path, title: str | None = None) -> list[Path]:
    """Write report.md, its pictures in plots/, and report.html, which needs no other file.

    Args:
        folders: run folders, or folders with run folders in them; runs that differ in the seed alone are averaged.
        output: where to write; made if need be.
        title: the heading; made from the folders' names by default.

    Returns:
        The files that were written, report.md and report.html first.

    Raises:
        SheetbendError: a folder holds no results that can be read, is given twice, or would be overwritten.
    """
    raise NotImplementedError
