"""Tables of a page: cells of a value with notes below it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableCell:
    """A value and the lines below it."""

    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table whose rows have a header each; `corner` stands above these."""

    title: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[TableCell]]]


EMPTY = TableCell("–")
