"""One page for several grids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.studies.grid_page import report_study
from vitfrost.studies.grid_parts import read_grid
from vitfrost.studies.paper import paper_rows
from vitfrost.studies.several import report_several


def test_a_page_of_two_models(finished_grid: Path, grid_folder: Path, tmp_path: Path, parse_page: Callable[[str], Any]) -> None:
    report_study(grid_folder)
    out = tmp_path / "all" / "report.html"
    page = parse_page(report_several({"One": finished_grid, "Two": grid_folder}, out).read_text(encoding="utf-8"))
    links = [reference for reference in page.references if not reference.startswith(("#", "data:"))]
    assert links == ["../grid/report.html"]
    assert (out.parent / links[0]).is_file()
    assert "One (no page of its own yet): " in page.text
    assert page.source.count('<figure class="plot">') == 2 * 2
    rows = {row.name: row for row in paper_rows(read_grid(finished_grid))}
    eam = rows["EAM 4bits, τ = 20 %"]
    assert eam.ours is not None
    assert eam.difference is not None
    published = page.text.index("EAM 4bits, τ = 20 % (4/4), published 91.00 −0.25 91.00 −0.25")
    ours = page.text.index(f"EAM 4bits, τ = 20 % (4/4), ours {eam.ours.value} {eam.difference.value} (")
    assert published < ours
    assert "Published: A paper, table 9, on other pictures" in page.text


def test_equal_folders_give_equal_pages(finished_grid: Path, grid_folder: Path, tmp_path: Path) -> None:
    first = report_several({"One": finished_grid}, tmp_path / "a.html").read_bytes()
    assert first == report_several({"One": grid_folder}, tmp_path / "b.html").read_bytes()


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=r"holds no study; python -m vitfrost\.studies run makes one from a recipe with a grid"):
        report_several({"One": tmp_path}, tmp_path / "page.html")
    with pytest.raises(VitfrostError, match="no runs to report"):
        report_several({}, tmp_path / "page.html")


def test_names_full_of_markup_stay_text(finished_grid: Path, tmp_path: Path, parse_page: Callable[[str], Any]) -> None:
    name = """<img src=x onerror=alert(1)></style>"'><script>alert(1)</script>{{ 7 * 7 }}"""
    page = parse_page(report_several({name: finished_grid}, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert name in page.text
    assert page.images == []
    assert "default-src 'none'" in page.source
