"""Two charts of heads, laid out for the template: every head against every head, and one bar per head. Lengths in SVG units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from .figures import Scale, picture

SIDE, LABEL_ROOM = 440.0, 24.0
BARS_WIDTH, BARS_HEIGHT = 960.0, 250.0


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


def _spaced(middles: Sequence[float], gap: float) -> list[tuple[float, str]]:
    """Numbers of layers at their middles; 0, 2, 4, ... or 0, 5, 10, ... or 0, 10, 20, ... where they would stand closer than `gap`."""
    closest = min((after - before for before, after in pairwise(middles)), default=gap)
    step = next((step for step in (1, 2, 5) if step * closest >= gap), 10)
    return [(round(middle, 2), str(number)) for number, middle in enumerate(middles) if number % step == 0]


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
        labels=_spaced(middles, 17.0),
        edges=[(round(head * cell, 2), f"{names[head]}: hallucinated") for head, _ in marked],
        marks=[
            Mark(
                round((like + 0.5) * cell, 2), round((head + 0.5) * cell, 2),
                f"{names[head]} is hallucinated like {names[like]}: cosine {values[head, like]:.3f}",
            )
            for head, like in marked
        ],
    )  # fmt: skip


@dataclass(frozen=True)
class HeadBar:
    """One head's bar from the bottom: `height` of what the others explain, `reached` of what its mix explains (None: no mix)."""

    x: float
    width: float
    height: float
    reached: float | None
    title: str


@dataclass(frozen=True)
class BarChart:
    """A bar per head, layer after layer; `bands` are the layers' start and end, `labels` their middles and numbers."""

    width: float
    height: float
    left: float
    top: float
    bottom: float
    ticks: list[tuple[float, str]]
    bands: list[tuple[float, float]]
    labels: list[tuple[float, str]]
    bars: list[HeadBar]


def bar_chart(shares: Sequence[Sequence[float | None]], reached: Sequence[dict[int, float | None]]) -> BarChart:
    """Lay out `shares[layer][head]` in 0..1 (None: no bar); `reached[layer]` holds the hallucinated heads' own (None: not known)."""
    left, top, bottom = 58.0, 12.0, BARS_HEIGHT - 44
    names = name_heads([len(heads) for heads in shares])
    step = (BARS_WIDTH - left - 8) / len(names)
    ends = left + step * np.cumsum([0, *map(len, shares)])
    bars, place = [], 0
    for layer, heads in enumerate(shares):
        for head, share in enumerate(heads):
            own = reached[layer].get(head)
            text = "the only head of its layer" if share is None else f"{100 * share:.1f} % explained by all other heads of its layer"
            if head in reached[layer]:
                text += "; hallucinated" + ("" if own is None else f", {100 * own:.1f} % explained by its mix")
            bars.append(
                HeadBar(
                    round(left + step * (place + 0.14), 2), round(0.72 * step, 2), round(_height(share, bottom - top), 2),
                    (0.0 if own is None else round(_height(own, bottom - top), 2)) if head in reached[layer] else None,
                    f"{names[place]}: {text}",
                )
            )  # fmt: skip
            place += 1
    return BarChart(
        BARS_WIDTH, BARS_HEIGHT, left, top, bottom,
        ticks=[(round(bottom - share * (bottom - top), 2), f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        bands=[(round(float(start), 2), round(float(end), 2)) for start, end in pairwise(ends)],
        labels=_spaced([float(start + end) / 2 for start, end in pairwise(ends)], 22.0),
        bars=bars,
    )  # fmt: skip


def _height(share: float | None, full: float) -> float:
    return 0.0 if share is None else full * min(max(share, 0.0), 1.0)
