"""A report as one HTML file that needs no other."""

import base64
import re
import struct
from functools import singledispatch
from html import escape
from importlib.resources import files

from markdown_it import MarkdownIt

from launch.reporting.document import Block, Bullets, Cell, Code, Document, Heading, Paragraph, Picture, Table

# Raw HTML is shown, not taken; text that looks like a link stays text.
_INLINE = MarkdownIt("commonmark", {"html": False}).disable(["link", "autolink", "image"])
_CHAPTERS_FOR_CONTENTS = 5
_DPI = 150
_WIDE = 600  # pixels of CSS
_BRIEF = "In brief"


def html(document: Document) -> str:
    """Return the document with its style and pictures in it."""
    anchors = _anchors(document)
    style = files("launch.reporting").joinpath("report.css").read_text(encoding="utf-8")
    parts = [f"<h1>{escape(document.title)}</h1>"]
    chapters = [(block, anchor) for block, anchor in anchors if block.level == 2]
    opened = False
    places = iter(anchor for _, anchor in anchors)
    for block in document.blocks:
        if isinstance(block, Heading):
            if opened:
                parts.append("</section>")
                opened = False
                parts += _contents(chapters)
            if block.text == _BRIEF and block.level == 2:
                parts.append('<section class="brief" aria-labelledby="in-brief">')
                parts.append(f'<h2 id="{next(places)}">{escape(block.text)}</h2>')
                opened = True
            else:
                parts.append(_heading(block, next(places)))
        else:
            parts.append(_block(block))
    if opened:
        parts.append("</section>")
    return _PAGE.format(title=escape(document.title), style=style, body="\n".join(parts))


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _anchors(document: Document) -> list[tuple[Heading, str]]:
    """Return each heading with an id of its own, made of its words."""
    found: list[tuple[Heading, str]] = []
    taken: set[str] = set()
    for block in document.blocks:
        if isinstance(block, Heading):
            base = re.sub(r"[^a-z0-9]+", "-", block.text.lower()).strip("-") or "part"
            names = (base if number == 1 else f"{base}-{number}" for number in range(1, len(taken) + 2))
            anchor = next(name for name in names if name not in taken)
            taken.add(anchor)
            found.append((block, anchor))
    return found


def _contents(chapters: list[tuple[Heading, str]]) -> list[str]:
    listed = [(block, anchor) for block, anchor in chapters if block.text != _BRIEF]
    if len(listed) < _CHAPTERS_FOR_CONTENTS:
        return []
    items = "".join(f'<li><a href="#{anchor}">{escape(block.text)}</a></li>' for block, anchor in listed)
    return [f'<nav aria-label="Contents"><ul>{items}</ul></nav>']


def _heading(block: Heading, anchor: str) -> str:
    link = f'<a class="anchor" href="#{anchor}">{escape(block.text)}</a>'
    return f'<h{block.level} id="{anchor}">{link}</h{block.level}>'


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block))


@_block.register
def _(block: Paragraph) -> str:
    kind = ' class="small"' if block.small else ""
    return f"<p{kind}>{_INLINE.renderInline(block.text)}</p>"


@_block.register
def _(block: Bullets) -> str:
    return "<ul>" + "".join(f"<li>{_INLINE.renderInline(line)}</li>" for line in block.lines) + "</ul>"


@_block.register
def _(block: Code) -> str:
    return f"<pre><code>{escape(block.text)}</code></pre>"


@_block.register
def _(block: Picture) -> str:
    width, height = (round(side * 96 / _DPI) for side in struct.unpack(">II", block.png[16:24]))
    dark = ""
    if block.dark is not None:
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(block.dark)}">'
    image = f'<img src="{_data(block.png)}" width="{width}" height="{height}" alt="{escape(block.alt)}">'
    picture = f"<picture>{dark}{image}</picture>" if dark else image
    if width > _WIDE:  # on a phone it scrolls in a box of its own, since nobody could read it there at full width
        label = f'role="region" tabindex="0" aria-label="{escape(block.caption)}"'
        picture = f'<div class="scroll wide" {label}>{picture}</div>'
    return f"<figure>{picture}<figcaption>{escape(block.caption)}</figcaption></figure>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


@_block.register
def _(block: Table) -> str:
    marks = any(cell.mark for row in block.rows for cell in row)
    number = "number marked" if marks else "number"
    kinds = ["" if index < block.left else f' class="{number}"' for index in range(len(block.header))]
    heads = zip(block.header, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in heads)
    lines: list[str] = []
    for place, (first, *rest) in enumerate(block.rows):
        cells = "".join(_cell(cell, "words" if index < block.left else number) for index, cell in enumerate(rest, 1))
        parted = ' class="parted"' if place in block.parted else ""
        lines.append(f'<tr{parted}><th scope="row">{_text(first)}</th>{cells}</tr>')
    caption = f"<caption><span>{escape(block.caption)}</span></caption>"
    label, body = escape(block.caption), "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, kind: str) -> str:
    best = " best" if cell.bold and kind != "words" else ""
    return f'<td class="{kind}{best}">{_text(cell)}</td>'


def _text(cell: Cell) -> str:
    text = f"<code>{escape(cell.text)}</code>" if cell.code and cell.text else escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.bold else text
    return text + (f'<span class="mark">{escape(cell.mark)}</span>' if cell.mark else "")
