"""Where a CLI's tables go: standard output, as wide as it is. Called by the commands of every package that print more than a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from replication.terminal_text import printable

PLAIN_WIDTH: Final = 200


class _PrintableConsole(Console):
    """What is printed is shown, not obeyed; colours and the like are the console's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def make_console() -> Console:
    """For standard output; a table that goes into a file or a pipe is not cut to 80 columns. Nothing printed is obeyed by a terminal."""
    console = _PrintableConsole(highlight=False, markup=False)
    return console if console.is_terminal else _PrintableConsole(highlight=False, markup=False, width=PLAIN_WIDTH)
