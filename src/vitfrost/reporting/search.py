"""What the page says of a search under a budget: what every head, layer and rank does alone, and the way that the search took."""

from __future__ import annotations

from dataclasses import dataclass

from ..budget.history import Measurement, SearchRecord, Taken
from ..budget.latency_record import Latencies, TimedChange, change_name
from ..budget.moves import MoveKind
from ..outputs import OutputKind, distance_name, distance_text
from .curves import Axis, Chart, Curve, CurvePoint, Level, line_chart
from .figures import HeatMap, heat_map
from .parts import RunParts
from .tables import EMPTY, Table, TableCell


@dataclass(frozen=True)
class LatencyPart:
    """`setup`: "openvino-int8, 1 thread"; `models`: None where no whole model was timed."""

    setup: str
    cpu: str
    original_ms: str
    changes: Table
    models: Table | None


def timed_for(record: SearchRecord) -> Latencies | None:
    """What was timed on the runtime that the search was for last; None where it was for none."""
    setup = record.outcome.latency.setup if record.outcome is not None and record.outcome.latency is not None else None
    budget = (record.budget.get("runtime"), record.budget.get("threads"))
    found = [
        each
        for each in record.latencies
        if each.changes and (each.setup == setup or (setup is None and (each.setup.runtime, each.setup.threads) == budget))
    ]
    return found[-1] if found else None


def build_latency(record: SearchRecord) -> LatencyPart | None:
    """From the search's record; None where it was not for a latency."""
    timed = timed_for(record)
    if timed is None or timed.original_ms is None:
        return None
    rows = [(_where(change), _change(change)) for change in timed.changes]
    columns = ["change", "saved, ms", "saved, %", "95 % interval"]
    table = Table("What one change saves at one site, batch 1", "Sites", columns, rows)
    return LatencyPart(timed.setup.said, timed.setup.cpu, f"{timed.original_ms:.2f}", table, _models(timed))


def _where(change: TimedChange) -> str:
    more = len(change.sites) - 1
    return change.sites[0] + (f" and {more} like it" if more else "")


def _change(change: TimedChange) -> list[TableCell]:
    low, high = change.interval
    return [
        TableCell(change_name(change.kind, change.amount)),
        TableCell(f"{change.saved_ms:.3f}"),
        TableCell(f"{100 * change.saved:.2f}"),
        TableCell(f"{100 * low:.2f} to {100 * high:.2f}"),
    ]


def _models(timed: Latencies) -> Table | None:
    if not timed.models:
        return None
    rows = []
    for number, model in enumerate(timed.models, 1):
        low, high = model.interval
        figures = [f"{100 * model.predicted:.1f}", f"{100 * model.ratio:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        rows.append((str(number), [*map(TableCell, figures), TableCell(f"{model.ms:.2f}"), TableCell(f"{model.original_ms:.2f}")]))
    columns = ["predicted, %", "measured, %", "95 % interval", "ms", "original, ms"]
    return Table("Whole models beside the original in the same rounds: share of its time", "Model", columns, rows)


MACS, LATENCY = "multiply-accumulates left, %", "latency left as predicted, %"


@dataclass(frozen=True)
class SearchPart:
    """The section's contents. `measure`: the distance in words, `counted` what it is given in. `heads`: that per
    head frozen, `windows`: per head windowed (None where heads were not measured alone)."""

    images: int
    labeled: bool
    measure: str
    counted: str
    outcome: str | None
    met: bool
    heads: HeatMap | None
    windows: HeatMap | None
    layers: Table | None
    latency: LatencyPart | None
    charts: list[Chart]
    steps: Table | None


def build_search(parts: RunParts) -> SearchPart | None:
    """From the search file of the run; None where there is none."""
    record = parts.search
    if record is None:
        return None
    return SearchPart(
        images=record.subject.images.images,
        labeled=record.subject.images.labeled,
        measure="KL(original ‖ changed)" if record.subject.outputs == "classes" else "the relative error",
        counted=_thousandths(record),
        outcome=record.outcome.said if record.outcome else None,
        met=record.outcome is not None and record.outcome.met,
        heads=_heads(record, "head"),
        windows=_heads(record, "window"),
        layers=_layers(record),
        latency=build_latency(record),
        charts=_charts(record) if record.steps else [],
        steps=_steps(record) if record.steps else None,
    )


def _heads(record: SearchRecord, kind: MoveKind) -> HeatMap | None:
    by_site: dict[str, list[float]] = {}
    for each in record.alone:
        if each.kind == kind and each.site is not None:
            by_site.setdefault(each.site, []).append(1000 * each.kl)
    if not by_site:
        return None
    return heat_map(f"mean {_thousandths(record)} (log)", list(by_site.values()), "cividis", ".2f", log=True)


def _layers(record: SearchRecord) -> Table | None:
    """A row per layer: all its heads frozen, and the ranks of the feed-forward block behind it (of the same number)."""
    frozen = [each for each in record.alone if each.kind == "layer"]
    ranks: dict[str, list[Measurement]] = {}
    for each in record.alone:
        if each.kind == "rank" and each.site is not None:
            ranks.setdefault(each.site, []).append(each)
    most = max(map(len, ranks.values()), default=0)
    count = max(len(frozen), len(ranks))
    if not count:
        return None
    columns = (["all heads frozen"] if frozen else []) + ["rank of its feed-forward block"] * most
    rows = []
    blocks = list(ranks.values())
    for number in range(count):
        cells = [_alone(frozen[number], record) if number < len(frozen) else EMPTY] if frozen else []
        own = blocks[number] if number < len(blocks) else []
        cells += [_alone(each, record, f"rank {each.rank}, ") for each in own] + [EMPTY] * (most - len(own))
        rows.append((f"L{number}", cells))
    return Table(f"{_thousandths(record)} of each change alone, and what it saves", "Layer", columns, rows)


def _alone(each: Measurement, record: SearchRecord, what: str = "") -> TableCell:
    saved = f"{what}{100 * (1 - each.macs / record.original_macs):.2f} % of MACs"
    timed = timed_for(record)
    if each.latency_share is not None and timed is not None and timed.original_ms is not None:
        share = 1 - each.latency_share
        saved += f", {share * timed.original_ms:.3f} ms ({100 * share:.2f} %)"
    return TableCell(f"{1000 * each.kl:.2f}", (saved,))


def _charts(record: SearchRecord) -> list[Chart]:
    """Divergence, and agreement (with top-1, where there are labels), over the multiply-accumulates that are left, or the latency."""
    original, outputs = record.measurements[0], record.subject.outputs
    title = "KL divergence from the original" if outputs == "classes" else "Relative error of the features"
    x = Axis(MACS if record.steps[0].latency_share is None else LATENCY)

    def readings(value: str, factor: float = 1.0) -> list[CurvePoint]:
        start = CurvePoint(100.0, factor * getattr(original, value), None, f"the original: {getattr(original, value):.4g}")
        steps = enumerate(record.steps, 1)
        return [
            start,
            *(CurvePoint(100 * _left(one), factor * getattr(one, value), None, _title(number, one, outputs)) for number, one in steps),
        ]

    shares = [Curve("agreement with the original", readings("agreement"), 1)]
    levels = []
    if original.top1 is not None:
        shares.append(Curve("top-1", readings("top1"), 2))
        levels.append(Level("top-1 of the original", original.top1, None))
    return [
        line_chart(title, [Curve(distance_name(outputs), readings("kl", 1000.0), 1)], x, Axis(_thousandths(record))),
        line_chart("Agreement" if original.top1 is None else "Agreement and top-1", shares, x, Axis("images, %"), levels=levels),
    ]


def _thousandths(record: SearchRecord) -> str:
    """What the figures of changes are counted in."""
    outputs = record.subject.outputs
    return f"{distance_name(outputs)}, thousandths{' of a nat' if outputs == 'classes' else ''}"


def _left(taken: Taken) -> float:
    return taken.macs_share if taken.latency_share is None else taken.latency_share


def _title(number: int, taken: Taken, outputs: OutputKind) -> str:
    top1 = "" if taken.top1 is None else f", top-1 {taken.top1:.1f} %"
    latency = "" if taken.latency_share is None else f", latency {100 * taken.latency_share:.1f} %"
    moved = distance_text(outputs, taken.kl, ".4g")
    title = f"step {number}, {taken.move}: {moved}, agreement {taken.agreement:.1f} %{top1}"
    return f"{title}, MACs {100 * taken.macs_share:.1f} %{latency}"


def _steps(record: SearchRecord) -> Table:
    labeled, outputs = record.subject.images.labeled, record.subject.outputs
    name, unit = distance_name(outputs), ", nats" if outputs == "classes" else ""
    latency = record.steps[0].latency_share is not None
    columns = [
        "what was changed",
        f"{name} added{unit}",
        f"{name}{unit}",
        "agreement, %",
        *(["top-1, %"] if labeled else []),
        "MACs left, %",
    ]
    columns += [LATENCY] * latency
    rows = []
    for number, taken in enumerate(record.steps, 1):
        top1 = [TableCell("–" if taken.top1 is None else f"{taken.top1:.1f}")] if labeled else []
        cells = [
            TableCell(taken.move),
            TableCell(f"{taken.increase:.4f}"),
            TableCell(f"{taken.kl:.4f}"),
            TableCell(f"{taken.agreement:.1f}"),
            *top1,
        ]
        cells += [TableCell(f"{100 * taken.macs_share:.1f}")]
        cells += [] if taken.latency_share is None else [TableCell(f"{100 * taken.latency_share:.1f}")]
        rows.append((str(number), cells))
    return Table("The steps of the search", "Step", columns, rows)
