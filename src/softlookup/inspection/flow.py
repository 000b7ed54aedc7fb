"""Text for the terminal that breaks where it should: between words, or between larger pieces that belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions
from rich.text import Text

INDENT = 2


class Flow:
    """Pieces, a space between each two, filled into lines of which all but the first are indented by ``INDENT``.

    No piece is broken, and no line ends in spaces: rich's own wrapping breaks at no-break spaces, and its padding
    fills every line up. ``first``: what the first line begins with.
    """

    def __init__(self, pieces: Iterable[Text], first: Text | str = ""):
        self.pieces, self.first = list(pieces), first

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line, empty = Text.assemble(self.first), True
        for piece in self.pieces:
            if not empty and line.cell_len + 1 + piece.cell_len > options.max_width:
                line.rstrip()
                yield line
                line, empty = Text(" " * INDENT), True
            if not empty:
                line.append(" ")
            elif not piece:
                continue  # no line begins with the second of two spaces
            line.append_text(piece)
            empty = False
        line.rstrip()
        yield line


def words(*parts: Text | str | tuple[str, str]) -> list[Text]:
    """The words of a text (as ``Text.assemble`` takes it), each with its style."""
    return list(Text.assemble(*parts).split(" "))
