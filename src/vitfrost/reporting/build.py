"""The verb `report`: a run's folder becomes one HTML page that needs no network."""

from __future__ import annotations

from pathlib import Path

from ..files import write_text
from . import summary
from .commands import commands
from .figures import HeatMap, heat_map
from .heads import build_gallery, frozen_shares
from .parts import RunParts, read_parts
from .search import build_search
from .structure import build_likeness, build_structure
from .templates import fill
from .verdict import build_verdict
from .waterfall import build_waterfall

TEMPLATE, REPORT = "page.html.j2", "report.html"
OPEN_LAYERS = 2


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run's folder (default: `report.html` in it) and return its path.

    Parts that the folder does not hold are left out, and the page says so. Equal folders give equal bytes.
    Raises VitfrostError when the folder is missing or holds no run or a study, when a part is damaged or of another model, and when
    the page cannot be written.
    """
    target = Path(run) / REPORT if out is None else Path(out)
    write_text(target, render(read_parts(Path(run))))
    return target


def render(parts: RunParts) -> str:
    """The page as text."""
    gallery = build_gallery(parts)
    divergence = gallery.divergence if gallery else None
    rows = parts.results.rows if parts.results else []
    likeness = build_likeness(parts)
    structure = build_structure(parts, likeness)
    return fill(
        TEMPLATE,
        parts=parts,
        name=parts.identity.name if parts.identity else "a model",
        done=summary.what_was_done(parts.plan, parts.exported) if parts.plan else None,
        verdict=build_verdict(parts),
        cards=summary.key_numbers(parts),
        facts=summary.facts(parts),
        rows=rows,
        columns=summary.result_columns(rows),
        savings=parts.savings,
        bars=summary.mac_bars(parts),
        gallery=gallery,
        open_layers=OPEN_LAYERS,
        entropy=heat_map("mean entropy, bits", gallery.mean_entropy, "viridis", ".2f") if gallery else None,
        shares=_shares(parts),
        likeness=likeness,
        structure=structure,
        search=build_search(parts),
        waterfall=build_waterfall(None if parts.artifact is None else parts.artifact.get("quantization")),
        untrained=summary.untrained(parts),
        freezes=parts.savings is not None and parts.savings.frozen_entries > 0,
        divergence=divergence,
        divergence_means=_thousandths(divergence.mean) if divergence else None,
        recipe=summary.recipe_text(parts.recipe),
        settings=summary.settings(parts),
        versions=summary.versions(parts),
        hashes=summary.file_hashes(parts),
        commands=commands(parts),
    )


def _shares(parts: RunParts) -> HeatMap | None:
    if parts.savings is None or parts.plan is None or not parts.savings.frozen_entries:
        return None
    chart = heat_map("frozen share, %", frozen_shares(parts.plan.layers), "cividis", ".1f", limits=(0.0, 100.0))
    for cells, layer in zip(chart.rows, parts.plan.layers, strict=True):
        for head in layer.hallucinated:
            cells[head] = ("–", "background:var(--hallucinated-tint);color:var(--hallucinated)")
    return chart


def _thousandths(divergence: list[list[float]]) -> HeatMap:
    return heat_map(
        "mean KL, thousandths of a bit (log)", [[1000 * value for value in heads] for heads in divergence], "cividis", ".1f", log=True
    )
