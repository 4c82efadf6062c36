"""What a layer costs by equations 6 to 9 of EAM, what we count, and what each plan of a grid truly saves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ..evaluation.cost import logit_macs
from ..reporting.parts import Anatomy
from ..reporting.summary import MAC_NAMES
from ..reporting.tables import EMPTY, Table, TableCell
from ..vit.sites import ModelSites
from .grid_parts import GridParts
from .outcome_files import Outcome
from .roles import bits_word, line_title
from .summary import Point, percent
from .variants import UNFROZEN

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


class _Layer(NamedTuple):
    """What a layer's cost depends on: N queries and M keys in each of its windows, width d, the heads' widths together; and of its
    feed-forward block all tokens, width and hidden width. Blocks without attention have no queries."""

    queries: int
    keys: int
    width: int
    inner: int
    windows: int
    tokens: int
    block_width: int
    hidden: int

    @property
    def projections(self) -> int:
        """Queries and output of N tokens, keys and values of M: 4 N d^2 where these are as many."""
        return self.windows * 2 * (self.queries + self.keys) * self.width * self.inner

    @property
    def products(self) -> int:
        return self.windows * 2 * self.queries * self.keys * self.inner

    @property
    def feed_forward(self) -> int:
        """8 N d^2 where the hidden width is 4 d."""
        return 2 * self.tokens * self.block_width * self.hidden

    @property
    def as_published(self) -> bool:
        """Whether equations 6 and 7 hold as they are printed."""
        return self.queries == self.keys and self.hidden == 4 * self.block_width

    @property
    def total(self) -> int:
        return self.projections + self.products + self.feed_forward


def complexity(anatomy: Anatomy) -> Complexity:
    """The table of equations 6 to 9 with the model's own N and d; windows are attended one by one, N being a window's tokens.

    Where a model has M keys to N queries, or another hidden width than 4 d, the equations are taken in the form that covers these.
    Feed-forward blocks behind convolutions have rows of their own.
    """
    layers, others = _layers(anatomy.sites)
    published = all(layer.as_published for layer in [*layers, *others])
    rows = [_row(layer, _numbered(numbers), len(numbers), published) for layer, numbers in _equal(layers)]
    rows += [_row(layer, f"convolution {_numbered(numbers)}", len(numbers), published) for layer, numbers in _equal(others)]
    columns = ["N", "d", "windows", "4Nd²: projections", "2N²d: QKᵀ and AV", "equation 6: MHSA", "equation 7: MLP",
               "equation 9: layer", "all these layers"]  # fmt: skip
    if not published:
        columns = ["N", "M keys", "d", "windows", "2(N+M)d²: projections", "2NMd: QKᵀ and AV", "equation 6 with M keys: MHSA",
                   "MLP's hidden width", "equation 7 with this width: MLP", "equation 9: layer", "all these layers"]  # fmt: skip
    counted = sum(anatomy.macs[part] for part in EQUATION_PARTS)
    beyond = [(MAC_NAMES[part], count) for part, count in anatomy.macs.items() if part not in EQUATION_PARTS and count]
    table = Table("Multiply-accumulates per image, millions", "Layers", columns, rows)
    equations = sum(layer.total for layer in [*layers, *others])
    return Complexity(table, equations, counted, beyond, sum(anatomy.macs.values()))


def _layers(sites: ModelSites) -> tuple[list[_Layer], list[_Layer]]:
    """Attention layers with the feed-forward block behind each, and feed-forward blocks behind convolutions."""
    blocks = [block for block in sites.feed_forward if block.block == "transformer"]
    layers = [
        _Layer(site.queries, site.keys, site.width, site.heads * site.head_dim, site.windows, block.tokens, block.width, block.hidden)
        for site, block in zip(sites.attention, blocks, strict=True)
    ]
    others = [
        _Layer(0, 0, block.width, 0, 1, block.tokens, block.width, block.hidden)
        for block in sites.feed_forward
        if block.block == "convolution"
    ]
    return layers, others


def _equal(layers: list[_Layer]) -> list[tuple[_Layer, list[int]]]:
    """Equal layers that follow each other, with their numbers."""
    return [(layer, [number for number, _ in members]) for layer, members in groupby(enumerate(layers), key=lambda one: one[1])]


def _numbered(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _row(layer: _Layer, named: str, count: int, published: bool) -> tuple[str, list[TableCell]]:
    attends = layer.queries > 0
    attention = [layer.projections, layer.products, layer.projections + layer.products]
    costs = [TableCell(_millions(cost)) if attends else EMPTY for cost in attention]
    size = [TableCell(f"{number:,}") for number in (layer.queries or layer.tokens, layer.width, layer.windows)]
    if not published:
        size.insert(1, TableCell(f"{layer.keys:,}") if attends else EMPTY)
        costs.append(TableCell(f"{layer.hidden:,}"))
    costs += [TableCell(_millions(cost)) for cost in (layer.feed_forward, layer.total, count * layer.total)]
    return named, size + costs


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
        main = parts.roles.main  # what a line differs from; at other bits than the paper's the first of its bits
        reference = main if main is not None and main.bits == line.bits else next(one for one in lines if one.bits == line.bits)
        label = f"{bits_word(line.bits)}, {line_title(line, reference)}"
        for share, point in line.points.items():
            saved = [whole - one.row.macs for one in point.outcomes if one.row.macs is not None]
            ideal = _mean([one.frozen for one in point.outcomes]) * max(per_entry)
            cells = [
                f"{_mean([one.frozen for one in point.outcomes]):,.0f}",
                _saved(saved, whole),
                f"{ideal / 1e6:.2f} M ({100 * ideal / whole:.2f} %)",
            ]
            rows.append((f"{label}, {percent(share)}", [TableCell(text) for text in [*cells, _constants(point, sizes)]]))
            plans, measured, saving, largest = plans + 1, measured + len(point.outcomes), saving + any(saved), max(largest, ideal / whole)
    if not rows:
        return None
    columns = ["frozen weights", "saved on dense hardware", "bound of free sparsity", "bytes of the constants"]
    return Savings(Table("What every plan saves per image", "Plan", columns, rows), plans, measured, saving, 100 * largest)


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
