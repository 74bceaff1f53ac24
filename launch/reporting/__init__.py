"""Reports: what one or many runs measured, as Markdown and as one HTML file."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["OF_RUNS", "write_report"]

# Files by which the folder of a run is known, where a report would replace the run's own.
OF_RUNS = ("results.json", "candidates.json", "config.yaml", "test_config.yaml")


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
    # Torch and Lightning come with these; the command line answers --help without them.
    from launch.reporting.content import document
    from launch.reporting.groups import grouped
    from launch.reporting.html import html
    from launch.reporting.markdown import PLOTS, markdown
    from launch.reporting.runs import read_runs

    runs, unfinished = read_runs(list(map(Path, folders)))
    _check_output(output)
    made = document(grouped(runs), unfinished, title)
    texts = {output / "report.md": markdown(made), output / "report.html": html(made)}
    contents = {path: text.encode() for path, text in texts.items()}
    contents |= {output / PLOTS / picture.name: picture.png for picture in made.pictures}
    _write(contents)
    return list(contents)


def _check_output(output: Path) -> None:
    """Raise `SheetbendError` where a report cannot be written, or would replace that of a run."""
    from mergers.errors import SheetbendError

    above = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise SheetbendError(f"--output {output}: {above} is a file; give a folder")
    for name in OF_RUNS:
        if (output / name).exists():
            raise SheetbendError(
                f"--output {output} is the folder of a run ({name} is in it), whose report.md and plots would be "
                "replaced; give another folder, such as one in it"
            )
    text, page = (output / name for name in ("report.md", "report.html"))
    if text.is_dir() or page.is_dir() or (text.exists() and not page.exists()):
        place = page if page.is_dir() else text
        raise SheetbendError(f"--output {output}: {place} is no report of this command; give another folder")
    if not os.access(above, os.W_OK):
        raise SheetbendError(f"--output {output} cannot be written: no permission for {above}; give another folder")


def _write(contents: Mapping[Path, bytes]) -> None:
    """Write all files, or none: each is complete beside its place before the first takes it."""
    from mergers.errors import SheetbendError
    from mergers.files import atomic_write

    with contextlib.ExitStack() as stack:
        try:
            for path, content in contents.items():
                stack.enter_context(atomic_write(path)).write_bytes(content)
        except OSError as error:
            where = error.filename or next(iter(contents)).parent
            raise SheetbendError(f"{where} cannot be written: {error.strerror or error}") from None


def default_output(folders: Sequence[Path]) -> Path:
    """Return ``report`` in the folder that all ``folders`` stand in, or in the only one.

    >>> str(default_output([Path("runs/seed-0"), Path("runs/seed-1")])), str(default_output([Path("runs/a")]))
    ('runs/report', 'runs/a/report')
    """
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    if common == Path(common.anchor):  # they have nothing in common
        return Path("report")
    here = Path.cwd()
    return (common.relative_to(here) if common.is_relative_to(here) else common) / "report"
