"""How estimates are written in the cells and titles of a study's pages."""

from __future__ import annotations

from ..evaluation.intervals import Estimate
from ..reporting.curves import Reading
from ..reporting.summary import interval, signed
from ..reporting.tables import Cell
from .summary import Point


def percent(share: float) -> str:
    """A share as "20 %"."""
    return f"{100 * share:g} %"


def accuracy(estimate: Estimate) -> Cell:
    """A percentage with its interval."""
    return Cell(f"{estimate.value:.2f}", (interval(estimate.interval),) if estimate.interval else ())


def gain(estimate: Estimate) -> Cell:
    """A difference in points with its interval, both signed."""
    return Cell(signed(estimate.value), (interval(estimate.interval, True),) if estimate.interval else ())


def missing_seeds(point: Point, expected: int) -> tuple[str, ...]:
    """A note where not all seeds are measured yet."""
    return () if len(point.seeds) >= expected else (f"{len(point.seeds)} of {expected} seeds",)


def reading(x: float, what: str, estimate: Estimate, unit: str, with_sign: bool = False) -> Reading:
    """An estimate as a point of a curve, entitled "entropy: 61.38 % (58.02 to 64.71)"."""
    value = signed(estimate.value) if with_sign else f"{estimate.value:.2f}"
    bounds = f" ({interval(estimate.interval, with_sign)})" if estimate.interval else ""
    return Reading(x, estimate.value, estimate.interval, f"{what}: {value} {unit}{bounds}")
