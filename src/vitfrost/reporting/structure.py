"""What the page says of the layers: how alike heads are, which ones are frozen whole or hallucinated, which blocks are compact, and the
costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..configs import Hallucinate
from ..evaluation.cost import MAC_PARTS, PARAMETER_PARTS
from ..map_sources import SOURCES
from ..map_sources.hallucinated import sources
from ..plans.heads import LayerPlan
from ..plans.schema import Plan
from .curves import Chart
from .figures import Scale
from .likeness import Pair, Twins, closest_pairs, cosines_of, count_twins, explained_by_others
from .matrix import MatrixChart, bar_chart, matrix_chart, name_heads
from .parts import Costs, HallucinatedHead, RunParts
from .summary import MAC_NAMES, signed
from .tables import EMPTY, Table, TableCell

THRESHOLDS = (0.9, 0.8)
PAIRS = 8
DEFAULT_RIDGE = 1e-3
CHOSEN_BY = {
    "medoids": "the medoids of the heads' similarity are computed",
    "explained": "the heads that explain most of the others' logits are computed",
    "first": "the first heads of every layer are computed",
    "random": "the computed heads were drawn at random",
}
PART_NAMES = MAC_NAMES | {"embeddings": "Positions, tokens and scales", "norms": "Norms"}
Source = tuple[str, str, str]


@dataclass(frozen=True)
class HeadLikeness:
    """How alike heads are. `shares[layer][head]`: explained by all other heads of the layer; `across` and `within` are closest pairs."""

    images: int
    heads: int
    shapes: int
    ridge: float
    chart: MatrixChart
    twins: list[Twins]
    opposites: int
    across: Table | None
    within: Table | None
    shares: list[list[float | None]]
    bars: Chart


@dataclass(frozen=True)
class BlockBar:
    """A compact block: its name, rank, and the relative error of its output (None: not known), with a bar's length in percent."""

    name: str
    rank: str
    error: str | None
    length: float


@dataclass(frozen=True)
class Structure:
    """What the plan changes in the layers. `sources[layer][head]` are (kind, text, title) of the cells of the overview of heads."""

    title: str
    constant: int
    constants: Table | None
    hallucinated: int
    heads: int
    chosen: str
    made: str
    start: str
    likes: Table | None
    explained: tuple[float, float] | None
    distance: tuple[float, float] | None
    sources: list[list[Source]]
    counts: list[tuple[str, int]]
    blocks: list[BlockBar]
    all_blocks: int
    error_of: str
    costs: Table
    change: str
    images: int | None
    trained: bool
    times: tuple[float, float] | None


def build_likeness(parts: RunParts) -> HeadLikeness | None:
    """Compare all heads with each other; None where no statistics of the run hold their similarity."""
    statistics = parts.compared
    if statistics is None:
        return None
    counts = [int(site["heads"]) for site in statistics.header.sites]
    layers = np.repeat(np.arange(len(counts)), counts)
    cosines = cosines_of(statistics.moments)
    ridge = parts.plan.hallucinate.ridge if parts.plan and parts.plan.hallucinate else DEFAULT_RIDGE
    shares = [explained_by_others(statistics.head_moments(site["name"]), ridge) for site in statistics.header.sites]
    starts = np.cumsum([0, *counts])
    planned = parts.plan.layers if parts.plan else ()
    marked = [
        (int(starts[number]) + head, int(starts[number]) + like)
        for number, layer in enumerate(planned)
        for head, like in zip(layer.hallucinated, sources(layer), strict=True)
    ]
    reached = [{head: one.explained if one else None for head, one in _reached(parts, layer)} for layer in planned]
    names, own = name_heads(counts), {place for place, _ in marked}

    def table(across: bool, title: str) -> Table | None:
        found = closest_pairs(cosines, layers, PAIRS, across)
        return (
            Table(title, "Heads", ["cosine"] + (["hallucinated"] if own else []), [_pair(pair, names, own) for pair in found])
            if found
            else None
        )

    return HeadLikeness(
        images=statistics.header.images,
        heads=len(names),
        shapes=len({(site["maps"][0], *site["maps"][2:]) for site in statistics.header.sites}),
        ridge=ridge,
        chart=matrix_chart(cosines, counts, marked, Scale("cosine", -1.0, 1.0, "RdBu_r")),
        twins=[count_twins(cosines, layers, above) for above in THRESHOLDS],
        opposites=count_twins(-cosines, layers, THRESHOLDS[0]).anywhere,
        across=table(True, "Closest pairs of heads of different layers"),
        within=table(False, "Closest pairs of heads of one layer"),
        shares=shares,
        bars=bar_chart(shares, reached or [{} for _ in counts]),
    )


def _pair(pair: Pair, names: list[str], hallucinated: set[int]) -> tuple[str, list[TableCell]]:
    cells = [TableCell(signed(pair.cosine, 3))]
    if hallucinated:
        cells.append(TableCell(", ".join(names[place] for place in (pair.first, pair.second) if place in hallucinated) or "–"))
    return f"{names[pair.first]} and {names[pair.second]}", cells


def _reached(parts: RunParts, layer: LayerPlan) -> list[tuple[int, HallucinatedHead | None]]:
    """What the artifact says of every hallucinated head of a layer."""
    known = {one.head: one for one in parts.record.heads.get(layer.site, [])} if parts.record else {}
    return [(head, known.get(head)) for head in layer.hallucinated]


def build_structure(parts: RunParts, likeness: HeadLikeness | None) -> Structure | None:
    """What the plan freezes whole, hallucinates and makes compact; None where it changes no layer."""
    plan, anatomy = parts.plan, parts.anatomy
    if plan is None or anatomy is None or anatomy.planned is None:
        return None
    known = [one for layer in plan.layers for _, one in _reached(parts, layer) if one is not None]
    cells = [[_source(layer, head) for head in range(len(layer.heads))] for layer in plan.layers]
    kinds = Counter(kind for heads in cells for kind, *_ in heads)
    before, after = parts.original, parts.compressed
    timed = before is not None and after is not None and before.kind == after.kind == "executed"
    times = (before.seconds_per_image, after.seconds_per_image) if before and after and timed else (None, None)
    blocks = _blocks(parts, plan)
    constant = sum(len(layer.constant) for layer in plan.layers)
    named = [("frozen heads", constant), ("hallucinated heads", kinds["hallucinated"]), ("compact blocks", len(blocks))]
    there = [name for name, count in named if count] or ["changed layers"]
    title = " and ".join([", ".join(there[:-1]), there[-1]] if len(there) > 1 else there)
    return Structure(
        title=title[0].upper() + title[1:],
        constant=constant,
        constants=_constants(plan),
        hallucinated=kinds["hallucinated"],
        heads=sum(kinds.values()),
        chosen=CHOSEN_BY[plan.hallucinate.by or "medoids"] if plan.hallucinate else "",
        made=_made(plan.hallucinate),
        start=_start(plan, kinds["hallucinated"] > 0),
        likes=_likes(parts, plan, likeness),
        explained=_range([one.explained for one in known]),
        distance=_range([one.distance for one in known]),
        sources=cells,
        counts=[(kind, kinds[kind]) for kind in SOURCES if kinds[kind]],
        blocks=blocks,
        all_blocks=len(anatomy.sites.feed_forward),
        error_of="weights" if plan.compact is not None and plan.compact.init == "weights" else "outputs",
        costs=_costs(Costs(anatomy.parameters, anatomy.macs), anatomy.planned),
        change=_totals(Costs(anatomy.parameters, anatomy.macs), anatomy.planned),
        images=parts.record.images if parts.record else None,
        trained=parts.trained,
        times=(1e3 * times[0], 1e3 * times[1]) if times[0] is not None and times[1] is not None else None,
    )


def _made(settings: Hallucinate | None) -> str:
    """What the maps of hallucinated heads are, as the end of a sentence."""
    if settings is None:
        return ""
    what = {"linear": "a mix of those", "pair": "a multiple of those", "copy": "copies of those"}[settings.inter_map]
    whose = "of another head" if settings.inter_map != "linear" else "of the other heads"
    subject = "the logits of their maps are" if settings.space == "logits" else "their maps, after the softmax, are"
    return f"{subject} {what} {whose} of their layer"


def _start(plan: Plan, hallucinates: bool) -> str:
    """Where mixes and factors come from while nothing was trained."""
    origins = []
    if any(layer.constant for layer in plan.layers):
        origins.append("constants are fitted to the mean maps" if plan.statistics is not None else "constant maps are uniform")
    if hallucinates and plan.hallucinate is not None:
        origins.append("mixes come in closed form from the heads' similarity" if plan.hallucinate.fits_mix else "mixes start as copies")
    if any(block.rank is not None for block in plan.feed_forward) and plan.compact is not None:
        closed = {"activations": "the original's weights and images", "weights": "the original's weights"}.get(plan.compact.init)
        origins.append("factors are random numbers" if closed is None else f"factors come in closed form from {closed}")
    return ", ".join(origins)


def _source(layer: LayerPlan, head: int) -> Source:
    plan = layer.heads[head]
    if plan.source == "hallucinated":
        like = dict(zip(layer.hallucinated, sources(layer), strict=True))[head]
        return "hallucinated", f"like H{like}", f"hallucinated, starts like head {like}"
    if plan.constant is not None:
        text = f"{plan.constant} {plan.window}" if plan.window else plan.constant
        return "frozen", text, f"frozen whole, {text}" + (f": {plan.why}" if plan.why else "")
    if plan.source == "frozen":
        share = f"{100 * plan.entries / layer.entries_per_head:.0f} %"
        return "frozen", share, f"{share} of its weights frozen, the others computed"
    return plan.source, "" if plan.source == "computed" else plan.source, plan.source


def _constants(plan: Plan) -> Table | None:
    """Every head that is frozen whole: its constant, and why it was chosen."""
    rows = []
    for number, layer in enumerate(plan.layers):
        for head in layer.constant:
            made = layer.heads[head]
            kind = f"{made.constant}, {made.window} × {made.window}" if made.window else str(made.constant)
            rows.append((f"L{number}H{head}", [TableCell(kind), TableCell(made.why) if made.why else EMPTY]))
    return Table("Heads that are frozen whole", "Head", ["constant", "why"], rows) if rows else None


def _range(values: list[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _likes(parts: RunParts, plan: Plan, likeness: HeadLikeness | None) -> Table | None:
    """Every hallucinated head: what it is made like, how alike both are, what could be explained and what is, how far its map is off."""
    rows = []
    for number, layer in enumerate(plan.layers):
        moments = parts.compared.head_moments(layer.site) if parts.compared is not None and layer.hallucinated else None
        for (head, one), like in zip(_reached(parts, layer), sources(layer), strict=True):
            share = likeness.shares[number][head] if likeness else None
            cells = [
                TableCell(f"L{number}H{like}"),
                EMPTY if moments is None else TableCell(f"{cosines_of(moments)[head, like]:.3f}"),
                _percent(share),
                _percent(one.explained if one else None),
                EMPTY if one is None or one.distance is None else TableCell(f"{one.distance:.3f}"),
            ]
            rows.append((f"L{number}H{head}", cells))
    columns = ["starts like", "cosine with it", "explained by all others, %", "explained by its mix, %", "distance of maps"]
    return Table("Hallucinated heads", "Head", columns, rows) if rows else None


def _percent(share: float | None) -> TableCell:
    return EMPTY if share is None else TableCell(f"{100 * share:.1f}".replace("-", "−"))


def _blocks(parts: RunParts, plan: Plan) -> list[BlockBar]:
    errors = parts.record.relative_errors if parts.record else {}
    longest = max((error for error in errors.values()), default=0.0)
    bars = []
    for number, block in enumerate(plan.feed_forward):
        if block.rank is not None:
            error = errors.get(block.site)
            length = 0.0 if error is None or not longest else 100 * error / longest
            bars.append(
                BlockBar(f"F{number}", f"rank {block.rank} of {block.width}", None if error is None else f"{100 * error:.2f} %", length)
            )
    return bars


def _totals(before: Costs, after: Costs) -> str:
    """Both totals in words: how far parameters and multiply-accumulates go down or up."""
    changes = [("parameters", before.parameters, after.parameters), ("multiply-accumulates", before.macs, after.macs)]
    return " and ".join(f"{what} by {signed(100 * (sum(new.values()) / sum(old.values()) - 1), 1)} %" for what, old, new in changes)


def _costs(before: Costs, after: Costs) -> Table:
    """Parameters and multiply-accumulates by part, before and with the plan's structure."""
    rows = []
    for part in dict.fromkeys(chain(PARAMETER_PARTS[:3], MAC_PARTS)):
        counts = [costs.get(part, 0) for costs in (before.parameters, after.parameters, before.macs, after.macs)]
        if any(counts):
            rows.append((PART_NAMES[part], _cost_cells(counts)))
    totals = [sum(costs.values()) for costs in (before.parameters, after.parameters, before.macs, after.macs)]
    rows.append(("Everything", _cost_cells(totals)))
    columns = ["parameters", "with the plan", "change", "MACs, M", "with the plan", "change"]
    return Table("Parameters, and multiply-accumulates (MACs) of one image, before and after", "Part", columns, rows)


def _cost_cells(counts: list[int]) -> list[TableCell]:
    shown = [f"{counts[0]:,}", f"{counts[1]:,}", _millions(counts[2]), _millions(counts[3])]
    cells = [TableCell(text) if count else EMPTY for text, count in zip(shown, counts, strict=True)]
    return [*cells[:2], _change(*counts[:2]), *cells[2:], _change(*counts[2:])]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count >= 5000 else "below 0.01"


def _change(old: int, new: int) -> TableCell:
    if old == new:
        return EMPTY
    return TableCell("new") if not old else TableCell(f"{signed(100 * (new / old - 1), 1)} %")
