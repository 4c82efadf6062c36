"""Rows of one group against each other: which peer is the one to beat, ratios, and the share of the machine's limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..runtime.runtimes import OWN_BITS
from .benchmark import BenchRow, Rate, Ratio
from .roofline import share_of_limit
from .rounds import paired_ratio


def compared(rows: Sequence[BenchRow], rates: Sequence[Rate], seed: int, against: str | None = None) -> list[BenchRow]:
    """The rows of one group, fastest first, with their ratios and their share of the limit.

    Every row is compared with the peer to beat (see `peer_of`), or the row or the fastest row of the model called `against`, and
    with its own unmodified model on the same runtime at the same precision.
    """
    found = []
    for row in sorted(rows, key=lambda row: row.p50_ms):
        named = (other for other in rows if against in (other.name, other.subject))
        peer = peer_of(row, rows) if against is None else fastest(named)
        found.append(
            row.model_copy(
                update={
                    "to_peer": None if peer is None else _ratio(row, peer, seed),
                    "to_unmodified": None if (own := unmodified_of(row, rows)) is None else _ratio(row, own, seed),
                    "limit_share": None if (share := share_of_limit(row, rates)) is None else float(f"{share:.6g}"),
                }
            )
        )
    return found


def peer_of(row: BenchRow, rows: Sequence[BenchRow]) -> BenchRow | None:
    """The peer to beat: the fastest row of the row's unmodified model, at any precision and on any runtime but our own engine, as the
    runtimes' own tools make it."""
    peers = (other for other in rows if other.unmodified and other.subject == row.original and other.graph == "plain")
    return fastest(other for other in peers if other.runtime not in OWN_BITS)


def unmodified_of(row: BenchRow, rows: Sequence[BenchRow]) -> BenchRow | None:
    """The unmodified model on the same runtime, in the same kind of graph, at the same precision (fp32, if the row is a simulation; 8 bits
    on our own engine); not of itself."""
    if row.unmodified:
        return None
    if row.runtime in OWN_BITS:
        isa = _isa(row)
        ours = (other for other in rows if other.unmodified and other.subject == row.original and other.runtime == row.runtime)
        return next((other for other in ours if _isa(other) == isa), None)
    precision = "fp32" if row.kind == "simulated" else row.precision
    same = (other for other in rows if other.unmodified and other.subject == row.original and other.runtime == row.runtime)
    return next((other for other in same if (other.precision, other.graph) == (precision, row.graph)), None)


def _isa(row: BenchRow) -> str:
    """The instructions that a row of our own engine names."""
    return row.precision.partition(" ")[2]


def fastest(rows: Iterable[BenchRow]) -> BenchRow | None:
    """The row with the smallest median time."""
    return min(rows, key=lambda row: row.p50_ms, default=None)


def _ratio(row: BenchRow, other: BenchRow, seed: int) -> Ratio:
    value, low, high = paired_ratio(row.round_ms, other.round_ms, seed)
    return Ratio(to=other.name, value=value, interval=(low, high))
