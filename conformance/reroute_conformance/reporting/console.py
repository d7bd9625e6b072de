"""Makes the console and the tables that the commands use to print for a person."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def new_table(title: str | None, left: int, *columns: str) -> Table:
    """A plain table; the first ``left`` columns are text, the others numbers."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(columns):
        made.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return made


def new_console() -> Console:
    """A console that leaves text as it is: nothing is wrapped, nothing but marked words is coloured."""
    return Console(soft_wrap=True, highlight=False)
