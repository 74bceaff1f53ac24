"""A report as parts that both Markdown and HTML are made from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# What Markdown gives a meaning within a line; an underscore has none between letters.
_SPECIAL = re.compile(r"([\\`*\[\]<>#|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def plain(text: object) -> str:
    r"""Return text from a file on one line and without control characters.

    >>> plain("a\tb\nc")
    'a b c'
    """
    return "".join(letter for letter in " ".join(str(text).split()) if letter.isprintable())


def escaped(text: object) -> str:
    r"""Return text from a file as Markdown that shows it as it stands.

    >>> print(escaped("<script> a_b|c"))
    \<script\> a_b\|c
    """
    return _SPECIAL.sub(r"\\\1", plain(text))


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as it is read; it is escaped when it is written.
        bold: whether it is the best of its column.
        code: whether it is a fingerprint or a setting, to be set in type of one width.
        mark: what follows the text, smaller.
    """

    text: str
    bold: bool = False
    code: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading; 2 is a chapter, 3 a section of it."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of Markdown in which names from files are escaped."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of such lines."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows, in a few words.
        header: a heading a column.
        rows: the first cell names the row.
        left: how many of the first columns are of words; the others hold numbers.
        parted: rows after which a line is drawn.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    parted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: of its file in plots/.
        caption: what it shows, below it.
        alt: the same for who cannot see it, with the numbers that matter.
        png: the file.
        dark: the same picture for a dark background, where there is one.
    """

    name: str
    caption: str
    alt: str
    png: bytes
    dark: bytes | None = None


Block = Heading | Paragraph | Bullets | Code | Table | Picture


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [block for block in self.blocks if isinstance(block, Picture)]


def words(*texts: object) -> tuple[Cell, ...]:
    """Return plain cells."""
    return tuple(Cell(plain(text)) for text in texts)


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], left: int = 1) -> Table:
    """Return a table of lists."""
    return Table(caption, tuple(header), tuple(tuple(row) for row in rows), left)
