"""A benchmark as tables for a terminal: one per group of rows that were interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime.runtimes import OWN_BITS
from ..terminal import tables
from .benchmark import Benchmark, BenchRow, Rate, Ratio
from .roofline import best_rate

if TYPE_CHECKING:
    from rich.console import Group


def format_benchmark(benchmark: Benchmark) -> Group:
    """Tables of the groups with the machine's limits, and a line for everything that was left out."""
    from rich.console import Group

    left_out = [f"left out: {left.name}: {left.why}" for left in benchmark.left_out]
    profiles = [_profile(row, benchmark.rates_of(row)) for row in benchmark.rows if row.profile is not None]
    return Group(*(_table(rows, benchmark.rates_of(rows[0])) for rows in benchmark.groups()), *profiles, *left_out)


def _limits(rates: Sequence[Rate]) -> str | None:
    """The limits by precision, in one line."""
    parts: dict[str, list[str]] = {}
    for rate in rates:
        parts.setdefault(rate.precision, []).append(f"{rate.runtime} {rate.gmacs_per_second:.1f}")
    return "limit, GMAC/s: " + "; ".join(f"{name}: {', '.join(cells)}" for name, cells in parts.items()) if parts else None


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def title_of(rows: Sequence[BenchRow]) -> str:
    """What the rows of a group have in common."""
    row = rows[0]
    size = f"{row.image_size[0]}" if row.image_size[0] == row.image_size[1] else "x".join(map(str, row.image_size))
    load = "" if row.other_load is None else f"; other processes kept {row.other_load:.1f} cores busy"
    return f"{size} px, batch {row.batch}, {_threads(row.threads)}{load}"


def _table(rows: Sequence[BenchRow], rates: Sequence[Rate]) -> Group:
    peers = ", ".join(dict.fromkeys(row.to_peer.to for row in rows if row.to_peer is not None))
    columns = [
        ("model", [_named(row) for row in rows]),
        ("p50 ms", [f"{row.p50_ms:.2f}" for row in rows]),
        ("time / peer", [_shown(row.to_peer, row.name) for row in rows]),
        ("file MB", [f"{row.file_bytes / 1e6:.1f}" for row in rows]),
        ("time / unmodified", [_shown(row.to_unmodified, row.name) for row in rows]),
        ("p90 ms", [f"{row.p90_ms:.2f}" for row in rows]),
        ("images/s", [f"{row.images_per_second:.1f}" for row in rows]),
        ("of limit", ["" if row.limit_share is None else f"{100 * row.limit_share:.0f} %" for row in rows]),
        ("GMACs", [f"{row.macs / 1e9:.3f}" for row in rows]),
        ("peak MB", ["" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}" for row in rows]),
        ("constant heads", [row.constant_forms or "" for row in rows]),
    ]
    title = f"{title_of(rows)}; peer: {peers or 'none'}"
    return tables(columns, title=title, caption=_limits(rates), left=("constant heads",))


def _profile(row: BenchRow, rates: Sequence[Rate]) -> Group:
    """Where the time of a row goes: its steps in order, their share of the time, their rate, and how far that is from the limit."""
    steps, best = row.profile or [], best_rate(row, rates)
    whole = sum(step.ms for step in steps) or 1.0
    speeds = [step.macs / step.ms / 1e6 if step.ms > 0 else 0.0 for step in steps]
    limit = None if best is None else best.gmacs_per_second
    columns = [
        ("step", [step.name for step in steps]),
        ("ms", [f"{step.ms:.3f}" for step in steps]),
        ("share", [f"{100 * step.ms / whole:.1f} %" for step in steps]),
        ("GMAC/s", [f"{speed:.0f}" if speed else "" for speed in speeds]),
        ("of limit", [f"{100 * speed / limit:.0f} %" if speed and limit else "" for speed in speeds]),
    ]
    return tables(columns, title=f"{row.name}: {whole:.2f} ms in {len(steps)} steps", caption=None)


def _named(row: BenchRow) -> str:
    weights = "\nrandom weights" if row.random_weights else ""
    return f"{row.subject}{weights}\n{row.runtime} {_precision(row)}"


def _precision(row: BenchRow) -> str:
    """What was asked for, and what it was computed in where that is something else."""
    notes = [row.precision] + ["lean graph"] * (row.graph == "lean" and row.runtime not in OWN_BITS)
    if row.kind == "simulated":
        notes.append("simulated in fp32")
    elif row.precision in ("fp32", "bf16", "bf16 hint") and row.effective_precision != row.precision.removesuffix(" hint"):
        notes.append(f"computed in {row.effective_precision}")
    if row.calibration is not None and row.calibration.startswith("noise"):
        notes.append("calibrated on noise")
    return "\n".join(notes)


def _shown(ratio: Ratio | None, name: str) -> str:
    if ratio is None:
        return ""
    if ratio.to == name:
        return "1"
    return f"{ratio.value:.3f}\n[{ratio.interval[0]:.3f}, {ratio.interval[1]:.3f}]"
