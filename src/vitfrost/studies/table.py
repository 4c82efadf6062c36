"""The points of a grid as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..evaluation.intervals import Estimate
from .summary import Point
from .variants import UNFROZEN, changed_options

if TYPE_CHECKING:
    from rich.table import Table


def format_points(points: Sequence[Point]) -> Table:
    """One line per point: what was frozen and how, mean top-1 over the seeds, difference to the unfrozen model; 95 % intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for title, side in (("block", "left"), ("frozen", "right"), ("by", "left"), ("statistics", "left"), ("constants", "right"),
                        ("options", "left"), ("seeds", "right"), ("top-1 %", "right"), ("difference", "right")):  # fmt: skip
        table.add_column(title, justify="right" if side == "right" else "left")
    for point in points:
        unfrozen = point.block == UNFROZEN
        table.add_row(
            point.block,
            "" if unfrozen else f"{100 * point.share:.1f} %",
            "" if unfrozen else str(point.options["by"]),
            "" if unfrozen else f"{point.statistics}, {point.statistics_images} images",
            "" if unfrozen else f"{point.options['frozen_bits']} bit",
            "" if unfrozen else ", ".join(changed_options(point.options)),
            str(len(point.seeds)),
            _shown(point.top1, ""),
            "" if unfrozen else _shown(point.difference, "+"),
        )
    return table


def _shown(estimate: Estimate, sign: str) -> str:
    shown = f"{estimate.value:{sign}.2f}"
    return shown if estimate.interval is None else f"{shown} [{estimate.interval[0]:{sign}.2f}, {estimate.interval[1]:{sign}.2f}]"
