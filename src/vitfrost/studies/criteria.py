"""What the paper does not compare: other criteria, scopes and treatments, and how many images the statistics need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import VitfrostError
from ..reporting.curves import COLORS, Axis, Chart, Curve, Level, line_chart
from ..reporting.tables import EMPTY, Table, TableCell
from .grid_parts import GridParts
from .paper import DIFFERENCE, SPARSITY, numbered_curves
from .roles import Line, Panel, Ranking, bits_word, line_title, names, word
from .summary import Point, between, gain, missing_seeds, percent, reading

UNFROZEN_LEVEL = Level("unfrozen", 0.0, None)


@dataclass(frozen=True)
class Comparison:
    """A chart of differences, their table, and the table of differences to the reference (None for a single line)."""

    chart: Chart
    table: Table
    against: Table | None


def comparisons(parts: GridParts) -> list[Comparison]:
    """One for every panel of which something is measured."""
    return [made for panel in parts.roles.panels if (made := _comparison(panel)) is not None]


def _comparison(panel: Panel) -> Comparison | None:
    lines = [line for line in panel.lines if line.points]
    if not any(line.points for line in panel.lines[panel.front :]):
        return None
    labels = names(lines)
    curves = numbered_curves(lines, labels, difference=True)
    columns = [percent(share) for share in panel.shares]
    x = Axis(SPARSITY, (0.0, 100 * panel.shares[-1]))
    chart = line_chart(panel.title, curves, x, Axis(DIFFERENCE), levels=[UNFROZEN_LEVEL])
    table = Table(
        "Difference to the unfrozen model, points", "Frozen", columns,
        [(label, [_difference_cell(line, share) for share in panel.shares]) for line, label in zip(lines, labels, strict=True)],
    )  # fmt: skip
    reference = lines[0]
    against = Table(
        f"Difference to “{labels[0]}”, points", "Frozen", columns,
        [
            (label, [_against(line.points.get(share), reference.points.get(share)) for share in panel.shares])
            for line, label in zip(lines[1:], labels[1:], strict=True)
        ],
    ) if len(lines) > 1 else None  # fmt: skip
    return Comparison(chart, table, against)


@dataclass(frozen=True)
class Ranked:
    """A line of a ranking: where its value and its interval lie, in percent of the track's length."""

    label: str
    value: str
    note: str
    dot: float
    left: float
    length: float
    reference: bool


@dataclass(frozen=True)
class RankedLines:
    """Differences at one share, the best first; `zero` is where the unfrozen model lies."""

    title: str
    rows: list[Ranked]
    zero: float
    against: Table | None


def rankings(parts: GridParts) -> list[RankedLines]:
    """One for every share of which more than one line is measured."""
    return [_ranking(one) for one in parts.roles.rankings if sum(one.share in line.points for line in one.lines) > 1]


def _ranking(ranking: Ranking) -> RankedLines:
    first, share = ranking.lines[0], ranking.share
    lines = sorted((line for line in ranking.lines if share in line.points), key=lambda line: -line.points[share].difference.value)
    found = [line.points[share].difference for line in lines]
    ends = [0.0, *(end for one in found for end in (one.interval or (one.value, one.value)))]
    low, span = min(ends), max(max(ends) - min(ends), 1e-9)

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    rows = []
    for line, one in zip(lines, found, strict=True):
        left, right = (place(end) for end in one.interval or (one.value, one.value))
        cell = _difference_cell(line, share)
        rows.append(Ranked(line_title(line, first), cell.value, ", ".join(cell.notes), place(one.value), left, right - left, line is first))
    against = None
    if share in first.points:
        others = [line for line in lines if line is not first]
        cells = [(line_title(line, first), [_against(line.points[share], first.points[share])]) for line in others]
        against = Table("Paired difference to the first choice", "Plan", [f"less {line_title(first, first)}, points"], cells)
    return RankedLines(f"{bits_word(ranking.bits)}, {percent(share)} frozen", rows, place(0.0), against)


def _difference_cell(line: Line, share: float) -> TableCell:
    point = line.points.get(share)
    if point is None:
        return EMPTY
    cell = gain(point.difference)
    return TableCell(cell.value, (*cell.notes, *missing_seeds(point, line.expected[share])))


def _against(one: Point | None, other: Point | None) -> TableCell:
    if one is None or other is None:
        return EMPTY
    try:
        return gain(between(one, other))
    except VitfrostError:  # they share no seed (yet)
        return EMPTY


def over_images(parts: GridParts) -> list[Comparison]:
    """Difference over the number of images behind the statistics, a curve per share; one chart per family of lines."""
    found = []
    families = [[line for line in family if line.points] for family in parts.roles.images]
    families = [family for family in families if len(family) > 1]
    labels = names([family[0] for family in families]) if len(families) > 1 else [""] * len(families)
    for family, label in zip(families, labels, strict=True):
        measured = Counter(share for line in family for share in line.points)
        shares = sorted(share for share, lines in measured.items() if lines > 1)
        if shares:
            found.append(_images_comparison(family, shares[:COLORS], label))
    return found


def _images_comparison(family: Sequence[Line], shares: Sequence[float], label: str) -> Comparison:
    curves = []
    for number, share in enumerate(shares, 1):
        points = [point for line in family if (point := line.points.get(share)) is not None]
        named = [(point, f"{word('statistics_images', point.statistics_images)}, {percent(share)} frozen") for point in points]
        seen = [reading(float(point.statistics_images), what, point.difference, "points", True) for point, what in named]
        curves.append(Curve(f"{percent(share)} frozen", seen, number))
    name = ", ".join(part for part in (bits_word(family[0].bits), label) if part)
    chart = line_chart(name, curves, Axis("images behind the statistics", log=True), Axis(DIFFERENCE), levels=[UNFROZEN_LEVEL])
    rows = [(f"{line.options['statistics_images']:,}", [_difference_cell(line, share) for share in shares]) for line in family]
    return Comparison(chart, Table("Difference to the unfrozen model, points", "Images", [percent(share) for share in shares], rows), None)
