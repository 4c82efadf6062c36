"""What the page says of a search for a latency: what changes save on the runtime, and the whole models that were timed."""

from __future__ import annotations

from dataclasses import dataclass

from ..budget.history import SearchRecord
from ..budget.latency_record import Latencies, TimedChange
from .tables import Cell, Table


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


def _change(change: TimedChange) -> list[Cell]:
    plural = "head" if change.amount == 1 else "heads"
    what = f"rank {change.amount}" if change.kind == "rank" else f"{change.amount} frozen {plural}"
    low, high = change.interval
    return [Cell(what), Cell(f"{change.saved_ms:.3f}"), Cell(f"{100 * change.saved:.2f}"), Cell(f"{100 * low:.2f} to {100 * high:.2f}")]


def _models(timed: Latencies) -> Table | None:
    if not timed.models:
        return None
    rows = []
    for number, model in enumerate(timed.models, 1):
        low, high = model.interval
        figures = [f"{100 * model.predicted:.1f}", f"{100 * model.ratio:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        rows.append((str(number), [*map(Cell, figures), Cell(f"{model.ms:.2f}"), Cell(f"{model.original_ms:.2f}")]))
    columns = ["predicted, %", "measured, %", "95 % interval", "ms", "original, ms"]
    return Table("Whole models beside the original in the same rounds: share of its time", "Model", columns, rows)
