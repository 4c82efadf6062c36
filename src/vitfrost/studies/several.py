"""One page for several grid runs: table 1 over all models, figures 5 and 6 as small multiples, and the way to every model's page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import VitfrostError
from ..files import write_text
from ..reporting.build import REPORT
from ..reporting.summary import signed
from ..reporting.tables import EMPTY, Table, TableCell
from ..reporting.templates import fill
from .grid_page import Progress, progress
from .grid_parts import read_grid
from .paper import PaperFigure, PaperRow, figure_five, figure_six, paper_rows

TEMPLATE = "several.html.j2"


@dataclass(frozen=True)
class OneModel:
    """What the page shows of a model; `link` is the way to its own page, None where there is none yet."""

    name: str
    link: str | None
    progress: Progress
    source: str | None
    rows: dict[str, PaperRow]
    five: PaperFigure | None
    six: PaperFigure | None


def report_several(folders: Mapping[str, Path], out: Path) -> Path:
    """Write one page about grid runs, given by the name that each is called by, and return its path. Equal folders give equal bytes.

    Links lead to `report.html` in the runs' folders, relative to `out`. Raises VitfrostError for no folder and for one that holds no
    grid run, and as `report` does.
    """
    if not folders:
        raise VitfrostError("no runs to report; name at least one folder of a grid run")
    models = [_one(name, Path(folder), Path(out)) for name, folder in folders.items()]
    text = fill(
        TEMPLATE, __package__, models=models, table=_table(models),
        sources=list(dict.fromkeys(model.source for model in models if model.source)),
        multiples=[
            ("figure-5", "Figure 5: accuracy over sparsity", [(model.name, model.five.charts[0]) for model in models if model.five]),
            ("figure-6", "Figure 6: entropy against random", [(model.name, model.six.charts[0]) for model in models if model.six]),
        ],
    )  # fmt: skip
    write_text(out, text)
    return Path(out)


def _one(name: str, folder: Path, out: Path) -> OneModel:
    parts = read_grid(folder)
    page, published = folder / REPORT, parts.recipe.published
    way = Path(os.path.relpath(page, out.parent)).as_posix()
    link = (f"./{way}" if ":" in way else way) if page.is_file() else None  # a path, also where a folder is called like an address
    rows = {f"{row.name} ({row.precision})": row for row in paper_rows(parts)}
    source = f"{published.source}, on {published.images}" if published else None
    return OneModel(name, link, progress(parts), source, rows, figure_five(parts), figure_six(parts))


def _table(models: list[OneModel]) -> Table | None:
    """Table 1 in the paper's form, a column per model; for every method the published row above ours."""
    methods = list(dict.fromkeys(method for model in models for method in model.rows))
    rows = []
    for method in methods:
        found = [model.rows.get(method) for model in models]
        if any(row is not None and row.published is not None for row in found):
            rows.append((f"{method}, published", [_published(row) for row in found]))
        rows.append((f"{method}, ours", [_ours(row) for row in found]))
    return Table("Top-1 %, below it the difference to RepQ-ViT", "Method", [model.name for model in models], rows) if rows else None


def _published(row: PaperRow | None) -> TableCell:
    if row is None or row.published is None:
        return EMPTY
    return TableCell(f"{row.published:.2f}", () if row.published_difference is None else (signed(row.published_difference),))


def _ours(row: PaperRow | None) -> TableCell:
    if row is None or row.ours is None:
        return EMPTY
    if row.difference is None:
        return row.ours
    bounds, *others = row.difference.notes or ("",)
    return TableCell(row.ours.value, (row.difference.value + (f" ({bounds})" if bounds else ""), *others))
