"""Tables fit 80 columns, and every cell is shown whole."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vitfrost.terminal import tables

WORDS = st.text("abcxyz0189.", min_size=1, max_size=16)


@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=rows, max_size=rows)), min_size=2, max_size=12)
    )
)
def test_tables_fit_and_show_every_cell(columns: list[tuple[str, list[str]]]) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(tables(columns, left=(columns[-1][0],)))
    shown = console.file.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    cells = [word for line in shown for word in line.split()]
    for title, column in columns:
        assert {title, *column} <= set(cells)


def test_columns_without_cells_are_left_out_and_a_total_stands_apart() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(tables([("part", ["a", "b", "total"]), ("empty", ["", "", ""]), ("count", ["1", "2", "3"])], total=True, title="parts"))
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines[0] == "parts"
    assert not any("empty" in line for line in lines)
    assert lines.index("total       3") - lines.index("b           2") == 2
