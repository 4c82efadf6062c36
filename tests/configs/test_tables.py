"""The tables of the documentation are those of the configuration classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitfrost.configs.tables import CLASSES, MARK, criteria_table, rewritten, table

DOCS = Path(__file__).parents[2] / "docs"
MARKED = [path for path in sorted(DOCS.glob("*.md")) if MARK.search(path.read_text())]


@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.name)
def test_the_tables_are_up_to_date(path: Path) -> None:
    assert rewritten(path.read_text()) == path.read_text(), f"run: python -m vitfrost.configs docs/{path.name}"


def test_options_have_tables() -> None:
    named = {mark[1] for path in MARKED for mark in MARK.finditer(path.read_text())}
    assert {"FreezeEntries", "FreezeHeads", "Hallucinate", "Compact", "Quantize", "Repair", "Search", "Calibrate", "criteria"} <= named


def test_a_row_tells_flag_default_values_and_meaning() -> None:
    rows = table("Search").splitlines()
    assert "| `--rescore` | `lazy` | `lazy`, `all` | Measure changes anew" in "".join(rows)
    assert "E[(A - A^mu)^2 \\|\\|W_O v\\|\\|^2]" in criteria_table()
    assert all(len(row.replace("\\|", "").split("|")) == 6 for cls in CLASSES for row in table(cls.__name__).splitlines())
    with pytest.raises(KeyError):
        table("nothing")


def test_the_program_rewrites_a_file(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: Quantize -->\nold\n<!-- end -->\nafter\n")
    assert subprocess.run([sys.executable, "-m", "vitfrost.configs", str(page)]).returncode == 0
    assert page.read_text() == f"before\n<!-- table: Quantize -->\n{table('Quantize')}\n<!-- end -->\nafter\n"
