"""What a layer costs by equations 6 to 9 of EAM, what we count, and what each plan of a grid truly saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from ..grid.record import Outcome
from ..grid.summary import Point
from ..grid.variants import UNFROZEN
from ..measure.cost import attention_complexity, feed_forward_complexity, logit_macs
from ..vit.sites import AttentionSite, FeedForwardSite, ModelSites
from .grid_parts import GridParts
from .parts import Anatomy
from .roles import Line, bits_word, told
from .summary import MAC_NAMES
from .tables import Cell, Table, percent

EQUATION_PARTS = ("query_key_projection", "query_key_product", "map_value_product", "value_output_projection", "feed_forward")


@dataclass(frozen=True)
class Complexity:
    """Equations 6 to 9 by layer. `equations` and `counted` are multiply-accumulates of all layers, `beyond` what no equation covers."""

    table: Table
    equations: int
    counted: int
    beyond: list[tuple[str, int]]
    total: int


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}"


def complexity(anatomy: Anatomy) -> Complexity:
    """The table of equations 6 to 9 with the model's own N and d; windows are attended one by one, N being a window's tokens."""
    groups = [
        (key, [number for number, *_ in members])
        for key, members in groupby(_layers(anatomy.sites), key=lambda layer: _shape(layer[1], layer[2]))
    ]
    rows, equations = [], 0
    for (tokens, width, windows, own_tokens), layers in groups:
        projections, products = windows * 4 * tokens * width**2, windows * 2 * tokens**2 * width
        attention = windows * attention_complexity(tokens, width)
        feed_forward = feed_forward_complexity(own_tokens, width)
        equations += len(layers) * (attention + feed_forward)
        named = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
        cells = [
            f"{tokens:,}",
            f"{width:,}",
            f"{windows:,}",
            *map(_millions, (projections, products, attention, feed_forward, attention + feed_forward)),
        ]
        rows.append((named, [Cell(text) for text in [*cells, _millions(len(layers) * (attention + feed_forward))]]))
    columns = [
        "N",
        "d",
        "windows",
        "4Nd²: projections",
        "2N²d: QKᵀ and AV",
        "equation 6: MHSA",
        "equation 7: MLP",
        "equation 9: layer",
        "all these layers",
    ]
    counted = sum(anatomy.macs[part] for part in EQUATION_PARTS)
    beyond = [(MAC_NAMES[part], count) for part, count in anatomy.macs.items() if part not in EQUATION_PARTS and count]
    table = Table("Multiply-accumulates per image, millions", "Layers", columns, rows)
    return Complexity(table, equations, counted, beyond, sum(anatomy.macs.values()))


def _layers(sites: ModelSites) -> Iterable[tuple[int, AttentionSite, FeedForwardSite]]:
    return zip(range(1, len(sites.attention) + 1), sites.attention, sites.feed_forward, strict=True)


def _shape(site: AttentionSite, block: FeedForwardSite) -> tuple[int, int, int, int]:
    return (site.queries, site.width, site.windows, block.tokens)


@dataclass(frozen=True)
class Savings:
    """What freezing saves in every row: `saving` of `plans` drop any product on dense hardware."""

    table: Table
    plans: int
    rows: int
    saving: int
    largest_ideal: float


def savings(parts: GridParts) -> Savings | None:
    """Multiply-accumulates left out and bytes of constants, plan by plan; None where the original or all plans are not measured."""
    if parts.original is None or parts.original.row.macs is None:
        return None
    whole = parts.original.row.macs
    sizes = {one.variant.source.model: one.row.size_bytes for one in parts.measured if one.variant and one.variant.block == UNFROZEN}
    sizes["fp32"] = parts.original.row.size_bytes
    lines = [line for line in parts.lines if line.points]
    per_entry = {logit_macs(site) // site.entries for site in parts.anatomy.sites.attention}
    rows, plans, saving, largest, measured = [], 0, 0, 0.0, 0
    for line in lines:
        label = _label(line, lines, parts.roles.main)
        for share, point in line.points.items():
            saved = [whole - one.row.macs for one in point.outcomes if one.row.macs is not None]
            ideal = _mean([one.frozen for one in point.outcomes]) * max(per_entry)
            cells = [
                f"{_mean([one.frozen for one in point.outcomes]):,.0f}",
                _saved(saved, whole),
                f"{ideal / 1e6:.2f} M ({100 * ideal / whole:.2f} %)",
            ]
            rows.append((f"{label}, {percent(share)}", [Cell(text) for text in [*cells, _constants(point, sizes)]]))
            plans, measured, saving, largest = plans + 1, measured + len(point.outcomes), saving + any(saved), max(largest, ideal / whole)
    if not rows:
        return None
    columns = ["frozen weights", "saved on dense hardware", "bound of free sparsity", "bytes of the constants"]
    return Savings(Table("What every plan saves per image", "Plan", columns, rows), plans, measured, saving, 100 * largest)


def _label(line: Line, lines: list[Line], main: Line | None) -> str:
    """Bits, criterion, and in what else a line differs from the paper's choice or, at other bits, from the first of its bits."""
    reference = main if main is not None and main.bits == line.bits else next(one for one in lines if one.bits == line.bits)
    return f"{bits_word(line.bits)}, {told(line, reference)}"


def _mean(values: list[int]) -> float:
    return sum(values) / max(len(values), 1)


def _saved(saved: list[int], whole: int) -> str:
    if not saved:
        return "not known"
    if not any(saved):
        return "nothing"
    low, high = min(saved), max(saved)
    shown = _millions(high) if low == high else f"{_millions(low)} to {_millions(high)}"
    return f"{shown} M ({100 * _mean(saved) / whole:.2f} %)"


def _constants(point: Point, sizes: dict[str, int | None]) -> str:
    found = [_more_bytes(one, sizes) for one in point.outcomes]
    known = [one for one in found if one is not None]
    return f"{_mean(known) / 1e3:,.1f} kB" if known else "not known"


def _more_bytes(one: Outcome, sizes: dict[str, int | None]) -> int | None:
    """Bytes of a variant less those of its unfrozen model."""
    assert one.variant is not None
    unfrozen = sizes.get(one.variant.source.model)
    return None if unfrozen is None or one.row.size_bytes is None else one.row.size_bytes - unfrozen
