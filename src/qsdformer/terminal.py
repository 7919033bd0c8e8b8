"""What commands print: lines as they are, and tables as wide as their columns need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 140  # columns of output that goes to a file or a pipe


def table_console() -> Console:
    """The terminal at its own width, or a file or a pipe at `FILE_WIDTH` columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def say(console: Console, line: str) -> None:
    """Print a line as it is: neither wrapped, nor coloured, nor with brackets taken for markup."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)
