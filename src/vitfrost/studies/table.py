"""The points of a grid as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.intervals import Estimate
from ..runs.recipe import PlanPart
from .summary import Point
from .variants import UNFROZEN

if TYPE_CHECKING:
    from rich.table import Table

ALWAYS = ("freeze", "by", "frozen_bits", "weight_bits", "activation_bits")


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
            "" if unfrozen else other_options(point),
            str(len(point.seeds)),
            _shown(point.top1, ""),
            "" if unfrozen else _shown(point.difference, "+"),
        )
    return table


def other_options(point: Point) -> str:
    """The options of a point that are not a plan's defaults, less those that have a column of their own."""
    own = PlanPart()
    changed: dict[str, Any] = {
        key: value
        for key, value in point.options.items()
        if key not in ALWAYS and hasattr(own, key) and list_of(value) != list_of(getattr(own, key))
    }
    return ", ".join(f"{key.replace('_', ' ')} {' '.join(map(str, list_of(value)))}" for key, value in changed.items())


def list_of(value: Any) -> list[Any]:
    """A list or tuple as a list, anything else as a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _shown(estimate: Estimate, sign: str) -> str:
    shown = f"{estimate.value:{sign}.2f}"
    return shown if estimate.interval is None else f"{shown} [{estimate.interval[0]:{sign}.2f}, {estimate.interval[1]:{sign}.2f}]"
