"""A benchmark as a picture: time over the time of the peer to beat, with intervals, one panel per group of rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_file
from ..runtime.runtimes import OWN_BITS
from .benchmark import Benchmark, BenchRow
from .sessions import NAMES
from .table import title_of

COLORS = dict(zip(NAMES, itertools.cycle(("#14628c", "#c0662b", "#6b7a86", "#5b8f4e", "#8c5a9e")), strict=False))


def draw_chart(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Write ratios.png and ratios.svg into `folder`; rows without a peer are left out. Returns the files, none where no row has one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups = [rows for group in benchmark.groups() if (rows := [row for row in group if row.to_peer is not None])]
    if not groups:
        return []
    columns = 1 if len(groups) == 1 else 2
    lines = -(-len(groups) // columns)
    height = max(len(rows) for rows in groups) * 0.32 + 1.3
    figure = Figure(figsize=(7.6 * columns, height * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, rows in zip(panels, groups, strict=False):
        _panel(panel, rows)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    used = [runtime for runtime in NAMES if any(row.runtime == runtime for rows in groups for row in rows)]
    bars = [Patch(color=COLORS[runtime], label=runtime) for runtime in used]
    bars.append(Patch(alpha=0, label="paler: unmodified models"))
    figure.legend(handles=bars, loc="outside lower center", ncols=len(bars), frameon=False)
    paths = [folder / "ratios.png", folder / "ratios.svg"]
    for path in paths:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _panel(panel: Any, rows: Sequence[BenchRow]) -> None:
    """Bars from 1 to the ratio on a logarithmic axis: to the left faster than the peer, to the right slower."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ends = [end for row in rows if row.to_peer is not None for end in (*row.to_peer.interval, 1.0)]
    span = max(max(ends) / min(ends), 1.5)
    low, high = min(ends) / span**0.06, max(ends) * span**0.35  # room for the figures at the right
    panel.set_xscale("log")
    for place, row in enumerate(reversed(rows)):
        assert row.to_peer is not None
        value, (first, last) = row.to_peer.value, row.to_peer.interval
        alpha = 0.55 if row.unmodified else 1.0
        panel.barh(place, value - 1, left=1, height=0.72, color=COLORS[row.runtime], alpha=alpha)
        panel.plot([first, last], [place, place], color="#1d2328", linewidth=1.2, solid_capstyle="butt")
        panel.text(max(last, 1.0) * 1.04, place, f"{value:.2f}  ({row.p50_ms:.3g} ms)", va="center", fontsize=7.5)
    labels = [f"{row.subject}, {row.precision}{', lean' if row.graph == 'lean' and row.runtime not in OWN_BITS else ''}" for row in rows]
    panel.set_yticks(range(len(rows)), labels[::-1], fontsize=8)
    panel.set_xlim(low, high)
    panel.axvline(1, color="#1d2328", linewidth=0.8)
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(0.2, 0.5, 1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    peers = list(dict.fromkeys(row.to_peer.to for row in rows if row.to_peer is not None))
    panel.set_title(title_of(rows), fontsize=9, loc="left")
    panel.set_xlabel(f"time / time of {peers[0] if len(peers) == 1 else 'the fastest peer'} (below 1: faster)", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
