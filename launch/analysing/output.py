"""What an analysis has found, and how it is kept and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from callbacks.event_files import write_analysis
from callbacks.plots import png
from launch.commands.screen import console, say, show
from mergers.files import atomic_write

FOLDER = "analyses"

# Curves of TensorBoard: {curve: {tag: [(step, value)]}}.
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


@dataclass(frozen=True)
class Finding:
    """What one kind of analysis has found.

    Attributes:
        kind: which; the name of its folder.
        files: CSV texts by file name, ``<kind>.csv`` first.
        figure: the picture.
        curves: for TensorBoard.
        title: of the table.
        table: for the screen.
        notes: what a reader should know, a sentence each.
    """

    kind: str
    files: Mapping[str, str]
    figure: Figure
    curves: Curves
    title: str
    table: Table
    notes: tuple[str, ...] = field(default=())


def keep(finding: Finding, folder: Path, config: str) -> None:
    """Write a finding to its folder, show its table, and say where it is.

    Args:
        finding: what was found.
        folder: that of all analyses of a run.
        config: the configuration it was made with, YAML.
    """
    own, picture = folder / finding.kind, png(finding.figure)
    for name, text in {**finding.files, "config.yaml": config}.items():
        with atomic_write(own / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_write(own / f"{finding.kind}.png") as temporary:
        temporary.write_bytes(picture)
    write_analysis(own / "tensorboard", finding.kind, finding.curves, picture)
    screen = console()
    for part in ("", finding.title, finding.table, *(f"note: {note}" for note in finding.notes), ""):
        show(screen, part)
    say(f"{own}: {finding.kind}.png, {', '.join(finding.files)}, tensorboard/")
