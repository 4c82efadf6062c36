"""Two charts of heads, laid out for the template: every head against every head, and one bar per head. Lengths in SVG units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from .curves import Axis, Chart, Frame, ShareBar, layer_labels, over_heads
from .figures import Scale, picture

SIDE, LABEL_ROOM = 440.0, 24.0
BARS_FRAME = Frame(960.0, 250.0, 58.0, 952.0, 12.0, 206.0, inset=0.0)


@dataclass(frozen=True)
class Mark:
    """A circle around a cell, with its title."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class MatrixChart:
    """A square picture of heads against heads with lines between layers; `edges` are heads marked on both axes (start, title).

    `labels` are layers: middle and number. `radius` is that of the marks, `cell` the side of a cell.
    """

    uri: str
    scale: Scale
    left: float
    top: float
    side: float
    cell: float
    radius: float
    borders: list[float]
    labels: list[tuple[float, str]]
    edges: list[tuple[float, str]]
    marks: list[Mark]

    @property
    def width(self) -> float:
        """Of the whole chart."""
        return self.left + self.side + 4

    @property
    def height(self) -> float:
        """Of the whole chart."""
        return self.top + self.side + 4


def name_heads(heads_per_layer: Sequence[int]) -> list[str]:
    """ "L0H0", "L0H1", ... for all heads of a model."""
    return [f"L{layer}H{head}" for layer, heads in enumerate(heads_per_layer) for head in range(heads)]


def matrix_chart(
    values: Float[np.ndarray, "heads heads"], heads_per_layer: Sequence[int], marked: Sequence[tuple[int, int]], scale: Scale
) -> MatrixChart:
    """Lay out `values`; `marked` are pairs (hallucinated head, the head it is made like) by their places among all heads."""
    names = name_heads(heads_per_layer)
    left, top = LABEL_ROOM + 22, LABEL_ROOM + 22
    cell = SIDE / len(names)
    ends = np.cumsum([0, *heads_per_layer]) * cell
    middles = [float(start + end) / 2 for start, end in pairwise(ends)]
    return MatrixChart(
        uri=picture(values, scale),
        scale=scale,
        left=left,
        top=top,
        side=SIDE,
        cell=round(cell, 3),
        radius=round(max(0.36 * cell, 3.0), 2),
        borders=[round(float(end), 2) for end in ends],
        labels=layer_labels(middles, 17.0),
        edges=[(round(head * cell, 2), f"{names[head]}: hallucinated") for head, _ in marked],
        marks=[
            Mark(
                round((like + 0.5) * cell, 2), round((head + 0.5) * cell, 2),
                f"{names[head]} is hallucinated like {names[like]}: cosine {values[head, like]:.3f}",
            )
            for head, like in marked
        ],
    )  # fmt: skip


def bar_chart(shares: Sequence[Sequence[float | None]], reached: Sequence[dict[int, float | None]]) -> Chart:
    """Lay out `shares[layer][head]` in 0..1 (None: no bar); `reached[layer]` holds the hallucinated heads' own (None: not known)."""
    heads_per_layer = [len(heads) for heads in shares]
    names = name_heads(heads_per_layer)
    percents = [(share, f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    chart = over_heads([], heads_per_layer, Axis("", (0.0, 1.0), ticks=percents), BARS_FRAME)
    step, full = (BARS_FRAME.right - BARS_FRAME.left) / len(names), BARS_FRAME.bottom - BARS_FRAME.top
    bars: list[ShareBar] = []
    for layer, heads in enumerate(shares):
        for head, share in enumerate(heads):
            own = reached[layer].get(head)
            text = "the only head of its layer" if share is None else f"{100 * share:.1f} % explained by all other heads of its layer"
            if head in reached[layer]:
                text += "; hallucinated" + ("" if own is None else f", {100 * own:.1f} % explained by its mix")
            made = _height(own, full) if head in reached[layer] else None
            x, title = round(BARS_FRAME.left + step * (len(bars) + 0.14), 2), f"{names[len(bars)]}: {text}"
            bars.append(ShareBar(x, round(0.72 * step, 2), _height(share, full), made, title))
    return replace(chart, bars=bars)


def _height(share: float | None, full: float) -> float:
    return 0.0 if share is None else round(full * min(max(share, 0.0), 1.0), 2)
