"""A table whose title and caption wrap at the width of the screen, not at that of a narrower table."""

from copy import copy

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


class WideTable(Table):
    """A table of rich with title and caption on the left, as wide as the screen."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, table and caption."""
        bare = copy(self)
        bare.title = bare.caption = None
        if self.title:
            yield Text.from_markup(self.title, style=self.title_style or "")
        yield from Table.__rich_console__(bare, console, options)
        if self.caption:
            yield Text.from_markup(self.caption, style=self.caption_style or "table.caption")
