"""Tables for a terminal of 80 columns: one that is wider is split, and every part begins with the column that names the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WIDTH = 80
Column = tuple[str, list[str]]


def tables(
    columns: Sequence[Column], *, title: str | None = None, caption: str | None = None, left: Sequence[str] = (), total: bool = False
) -> Group:
    """Titles and cells, which may have several lines, as tables of at most `WIDTH` characters. Columns without any cell are left out.

    The first column names the rows. `left`: titles of further columns that are not numbers. `total`: the last row is a sum.
    """
    from rich.console import Group

    first, *others = columns
    filled = [column for column in others if any(column[1])]
    parts: list[list[Column]] = [[]]
    for column in filled:
        if parts[-1] and _width([first, *parts[-1], column]) > WIDTH:
            parts.append([])
        parts[-1].append(column)
    made = [_table([first, *part], {first[0], *left}, total) for part in parts]
    made[0].title, made[0].title_justify = title, "left"
    made[-1].caption, made[-1].caption_justify = caption, "left"
    return Group(*made)


def _width(columns: Sequence[Column]) -> int:
    """What rich needs for a table without lines between columns."""
    widest = [max(len(line) for cell in (title, *cells) for line in cell.split("\n")) for title, cells in columns]
    return sum(widest) + 2 * len(columns) + len(columns) + 1


def _table(columns: Sequence[Column], left: set[str], total: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for title, _ in columns:
        table.add_column(title, justify="left" if title in left else "right", overflow="fold")
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    for number, row in enumerate(rows):
        table.add_row(*row, end_section=total and number == len(rows) - 2)
    return table
