"""Table 1 and figures 5 and 6 of EAM from the points of a grid, beside the published values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..evaluation.intervals import Estimate
from ..reporting.curves import Axis, Chart, Curve, CurvePoint, Level, line_chart
from ..reporting.summary import signed
from ..reporting.tables import EMPTY, Table, TableCell
from .grid_parts import GridParts
from .recipe import PublishedPart
from .roles import Line, bits_word, names
from .summary import Point, accuracy, between, gain, missing_seeds, percent, reading

TABLE_SHARES = (0.1, 0.2)
SPARSITY = "frozen attention weights, %"
TOP1 = Axis("top-1, %")
GAP = "entropy less random"
DIFFERENCE = "difference to unfrozen, points"
PAPER_NAMES = {("quantized", 4): "EAM 4bits", ("fp32", 32): "EAM FP32"}
CELL_COLORS = {("quantized", 4): 1, ("fp32", 32): 2, ("quantized", 32): 3, ("fp32", 4): 5}
PUBLISHED = "published difference"
SMALL_LOSS = 3.0


@dataclass(frozen=True)
class PaperFigure:
    """Charts that belong together, and the table of their values."""

    charts: list[Chart]
    table: Table


@dataclass(frozen=True)
class PaperRow:
    """A line of table 1; cells are None where there is no such number."""

    name: str
    precision: str
    published: float | None
    ours: TableCell | None
    published_difference: float | None
    difference: TableCell | None


def baseline(parts: GridParts) -> Point | None:
    """The unfrozen quantized model of the paper's figures."""
    main = parts.roles.main
    return None if main is None else parts.unfrozen(*main.bits, main.options["levels"])


def cell_name(line: Line) -> str:
    """The paper's name of a cell of figure 5, or what it is made of."""
    made = f"{line.cell[1]}-bit constants, statistics of the {'original' if line.cell[0] == 'fp32' else 'quantized model'}"
    return f"{PAPER_NAMES[line.cell]}: {made}" if line.cell in PAPER_NAMES else made


def table_shares(parts: GridParts) -> list[float]:
    """The shares of table 1: the paper's, and those for which the recipe names published values."""
    main, published = parts.roles.main, parts.recipe.published
    wanted = {*(published.frozen if published else ()), *(share for share in TABLE_SHARES if main and share in main.expected)}
    return sorted(wanted)


def paper_rows(parts: GridParts) -> list[PaperRow]:
    """The lines of table 1: full precision, RepQ-ViT, EAM_4bits at the shares."""
    published = parts.recipe.published
    reference = published.quantized if published else None
    main, unfrozen = parts.roles.main, baseline(parts)
    rows = [PaperRow("Full precision", "32/32", published.full_precision if published else None, _original(parts), None, None)]
    if main is None:
        return rows
    precision = "/".join(map(str, main.bits))
    rows.append(PaperRow("RepQ-ViT", precision, reference, accuracy(unfrozen.top1) if unfrozen else None, None, None))
    for share in table_shares(parts):
        point, value = main.points.get(share), published.frozen.get(share) if published else None
        notes = missing_seeds(point, main.expected[share]) if point else ()
        rows.append(
            PaperRow(
                f"{PAPER_NAMES.get(main.cell, 'EAM')}, τ = {percent(share)}", precision, value,
                _with(accuracy(point.top1), notes) if point else None,
                None if value is None or reference is None else value - reference,
                _with(gain(point.difference), notes) if point else None,
            )
        )  # fmt: skip
    return rows


def _original(parts: GridParts) -> TableCell | None:
    row = parts.original.row if parts.original else None
    return None if row is None or row.top1 is None else accuracy(Estimate(row.top1, row.interval))


def _with(cell: TableCell, notes: tuple[str, ...]) -> TableCell:
    return TableCell(cell.value, (*cell.notes, *notes))


def table_one(parts: GridParts) -> Table | None:
    """Table 1; None where there is nothing to put into it."""
    rows = paper_rows(parts)
    if not any(row.ours for row in rows):
        return None
    published = any(row.published is not None for row in rows)

    def plain(value: float | None, with_sign: bool = False) -> TableCell:
        return EMPTY if value is None else TableCell(signed(value) if with_sign else f"{value:.2f}")

    columns = ["Bits W/A", *(["Published top-1 %"] if published else []), "Our top-1 %"]
    columns += [*(["Published, less RepQ-ViT"] if published else []), "Ours, less RepQ-ViT"]
    made = []
    for row in rows:
        cells = [TableCell(row.precision), *([plain(row.published)] if published else []), row.ours or EMPTY]
        cells += [*([plain(row.published_difference, True)] if published else []), row.difference or EMPTY]
        made.append((row.name, cells))
    return Table("Table 1 of the paper", "Method", columns, made)


def readings(line: Line, name: str, difference: bool = False) -> list[CurvePoint]:
    """The points of a line over its shares in percent: accuracies, or differences to the unfrozen model."""
    unit = "points" if difference else "% top-1"
    return [
        reading(100 * share, f"{name}, {percent(share)} frozen", point.difference if difference else point.top1, unit, difference)
        for share, point in line.points.items()
    ]


def share_axis(lines: Sequence[Line]) -> Axis:
    """Shares in percent, from 0 to the largest of the lines."""
    return Axis(SPARSITY, (0.0, 100 * max((share for line in lines for share in line.expected), default=1.0)))


def _unfrozen_level(parts: GridParts) -> list[Level]:
    point, main = baseline(parts), parts.roles.main
    return [] if point is None or main is None else [Level(f"RepQ-ViT {bits_word(main.bits)}, unfrozen", *point.top1)]


def share_table(title: str, lines: Sequence[Line], labels: Sequence[str]) -> Table:
    """Accuracy and difference of every line at every share."""
    shares = sorted({share for line in lines for share in line.expected})
    return Table(title, "Frozen", list(labels), [(percent(share), [_share_cell(line, share) for line in lines]) for share in shares])


def _share_cell(line: Line, share: float) -> TableCell:
    point = line.points.get(share)
    if point is None:
        return EMPTY
    top1, difference = accuracy(point.top1), gain(point.difference)
    against = f"{difference.value} ({difference.notes[0]})" if difference.notes else difference.value
    return TableCell(top1.value, (*top1.notes, f"less unfrozen: {against}", *missing_seeds(point, line.expected[share])))


def accuracy_chart(lines: Sequence[Line], curves: Sequence[Curve], levels: Sequence[Level]) -> Chart:
    """Accuracy over the share of frozen weights."""
    return line_chart("Accuracy", curves, share_axis(lines), TOP1, levels=levels)


def numbered_curves(lines: Sequence[Line], labels: Sequence[str], difference: bool = False) -> list[Curve]:
    """The lines in the colors from 1 on."""
    numbered = enumerate(zip(lines, labels, strict=True), 1)
    return [Curve(label, readings(line, label, difference), number) for number, (line, label) in numbered]


def figure_five(parts: GridParts) -> PaperFigure | None:
    """Accuracy over the share of frozen weights, and paired differences at small losses; None where nothing is measured."""
    lines = [line for line in parts.roles.paper if line.points]
    if not lines:
        return None
    labels = [cell_name(line) for line in lines]
    chart = accuracy_chart(lines, _cell_curves(lines, labels), _unfrozen_level(parts))
    close = _close_up(lines, labels, parts.recipe.published)
    return PaperFigure([chart, *([close] if close else [])], share_table("Values of figure 5", lines, labels))


def _cell_curves(lines: Sequence[Line], labels: Sequence[str], difference: bool = False) -> list[Curve]:
    """The paper's two cells stand out; the others are light."""
    return [
        replace(curve, color=CELL_COLORS.get(line.cell, 6 + number % 2), light=line.cell not in PAPER_NAMES)
        for number, (line, curve) in enumerate(zip(lines, numbered_curves(lines, labels, difference), strict=True))
    ]


def published_points(published: PublishedPart | None) -> list[CurvePoint]:
    """Published accuracies less the published baseline, by share in percent."""
    if published is None or published.quantized is None:
        return []
    return [
        CurvePoint(
            100 * share,
            value - published.quantized,
            None,
            f"published, {percent(share)} frozen: {signed(value - published.quantized)} points",
        )
        for share, value in sorted(published.frozen.items())
    ]


def _close_up(lines: Sequence[Line], labels: Sequence[str], published: PublishedPart | None) -> Chart | None:
    """Paired differences where they are small, with the published ones; None where the loss is large at once."""
    near = [share for line in lines for share, point in line.points.items() if point.difference.value > -SMALL_LOSS]
    marks = published_points(published)
    if not near and not marks:
        return None
    last = max([100 * share for share in near] + [reading.x for reading in marks])
    curves = _cell_curves(lines, labels, difference=True)
    if marks:
        curves.append(Curve(PUBLISHED, marks, 8, dashed=True, joined=len(marks) > 1))
    shown = [r for curve in curves for r in curve.readings if r.x <= last and r.y > -SMALL_LOSS]
    ends = [end for r in shown for end in (r.interval or (r.y, r.y))]
    low, high = min([*ends, -0.5]), max([*ends, 0.5])
    return line_chart(
        "Paired differences, enlarged", curves, Axis(SPARSITY, (0.0, last)), Axis(DIFFERENCE, (low - 0.1, high + 0.1)),
        levels=[Level("unfrozen", 0.0, None)],
    )  # fmt: skip


def figure_six(parts: GridParts) -> PaperFigure | None:
    """Entropy against random, and the gap between them; None where one of them is not measured."""
    pair = parts.roles.control
    if pair is None or not all(line.points for line in pair):
        return None
    entropy, random = pair
    chart = accuracy_chart(pair, numbered_curves(pair, ["entropy", "random"]), _unfrozen_level(parts))
    gaps = {share: between(point, random.points[share]) for share, point in entropy.points.items() if share in random.points}
    curve = Curve(GAP, [reading(100 * share, f"gap, {percent(share)} frozen", gap, "points", True) for share, gap in gaps.items()], 3)
    table = share_table("Values of figure 6", pair, ["entropy", "random"])
    shares = sorted({*entropy.expected, *random.expected})
    rows = [
        (name, [*cells, gain(gaps[share]) if share in gaps else EMPTY]) for share, (name, cells) in zip(shares, table.rows, strict=True)
    ]
    return PaperFigure(
        [chart, line_chart("Gap", [curve], share_axis(pair), Axis(f"{GAP}, points"), levels=[Level("no gap", 0.0, None)])],
        Table(table.title, table.corner, [*table.columns, GAP], rows),
    )


def freezing_alone(parts: GridParts) -> PaperFigure | None:
    """Freezing in the full-precision model; None where it is not measured."""
    lines = [line for line in parts.roles.alone if line.points]
    if not lines:
        return None
    labels, row = names(lines), parts.original.row if parts.original else None
    level = [] if row is None or row.top1 is None else [Level("original", row.top1, row.interval)]
    chart = accuracy_chart(lines, numbered_curves(lines, labels), level)
    return PaperFigure([chart], share_table("Values of freezing alone", lines, labels))
