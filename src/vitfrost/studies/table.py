"""The points of a grid as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..evaluation.intervals import Estimate
from .summary import Point
from .variants import UNFROZEN, changed_options

if TYPE_CHECKING:
    from rich.console import Group


def format_points(points: Sequence[Point]) -> Group:
    """One line per point: what was frozen and how, mean top-1 over the seeds, difference to the unfrozen model; 95 % intervals."""
    from ..terminal import tables

    rows = [_row(point) for point in points]
    columns = [(title, [row[title] for row in rows]) for title in (rows[0] if rows else ("block",))]
    return tables(columns, left=("by", "statistics", "options"))


def _row(point: Point) -> dict[str, str]:
    changes = {
        "frozen": f"{100 * point.share:.1f} %",
        "by": str(point.options["by"]),
        "statistics": f"{point.statistics}, {point.statistics_images} images",
        "constants": f"{point.options['frozen_bits']} bit",
        "options": ", ".join(changed_options(point.options)),
        "difference": _shown(point.difference, "+"),
    }
    if point.block == UNFROZEN:
        changes = dict.fromkeys(changes, "")
    difference = changes.pop("difference")
    return {"block": point.block} | changes | {"seeds": str(len(point.seeds)), "top-1 %": _shown(point.top1, ""), "difference": difference}


def _shown(estimate: Estimate, sign: str) -> str:
    shown = f"{estimate.value:{sign}.2f}"
    return shown if estimate.interval is None else f"{shown} [{estimate.interval[0]:{sign}.2f}, {estimate.interval[1]:{sign}.2f}]"
