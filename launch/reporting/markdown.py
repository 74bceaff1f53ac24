"""A report as GitHub-flavoured Markdown."""

from functools import singledispatch

from launch.reporting.document import Block, Bullets, Cell, Code, Document, Heading, Paragraph, Picture, Table, escaped

PLOTS = "plots"


def markdown(document: Document) -> str:
    """Return the document; its pictures are expected in ``plots/`` beside it."""
    parts = [f"# {escaped(document.title)}", *(_block(block) for block in document.blocks)]
    return "\n\n".join(parts) + "\n"


@singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block))


@_block.register
def _(block: Heading) -> str:
    return f"{'#' * block.level} {escaped(block.text)}"


@_block.register
def _(block: Paragraph) -> str:
    return block.text


@_block.register
def _(block: Bullets) -> str:
    return "\n".join(f"- {line}" for line in block.lines)


@_block.register
def _(block: Code) -> str:
    fence = "```"
    while fence in block.text:
        fence += "`"
    return f"{fence}\n{block.text}\n{fence}"


@_block.register
def _(block: Picture) -> str:
    return f"![{escaped(block.alt)}]({PLOTS}/{block.name})"


@_block.register
def _(block: Table) -> str:
    rule = ["---" if index < block.left else "---:" for index in range(len(block.header))]
    lines = [[escaped(text) for text in block.header], rule, *([_cell(cell) for cell in row] for row in block.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    if cell.code and cell.text:
        text = "`" + cell.text.replace("`", "'").replace("|", "\\|") + "`"
    else:
        text = escaped(cell.text)
    return (f"**{text}**" if cell.bold else text) + (f" {cell.mark}" if cell.mark else "")
