"""Charts over two axes as plain numbers: values with intervals go in, positions of an SVG come out; the template draws them.

Lengths are in SVG units. Every point keeps its value as a title, and colors go with a shape of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .figures import decades

COLORS = 8
ARM = 0.38
PLUS = (
    (-ARM, -1.2), (ARM, -1.2), (ARM, -ARM), (1.2, -ARM), (1.2, ARM), (ARM, ARM),
    (ARM, 1.2), (-ARM, 1.2), (-ARM, ARM), (-1.2, ARM), (-1.2, -ARM), (-ARM, -ARM),
)  # fmt: skip
POLYGONS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),  # a circle
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)),
    ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
    ((0, 1.2), (-1.15, -0.85), (1.15, -0.85)),
    PLUS,
    ((-1.3, -0.45), (1.3, -0.45), (1.3, 0.45), (-1.3, 0.45)),
    tuple(((x - y) * math.sqrt(0.5), (x + y) * math.sqrt(0.5)) for x, y in PLUS),
)

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Frame:
    """The size of a chart and where its axes lie in it. Points keep `inset` from the ends of the x axis; `mark` is half their size."""

    width: float = 520.0
    height: float = 330.0
    left: float = 62.0
    right: float = 510.0
    top: float = 12.0
    bottom: float = 280.0
    inset: float = 10.0
    mark: float = 4.2


FRAME = Frame()
HEADS_FRAME = Frame(960.0, 306.0, 58.0, 952.0, 12.0, 262.0, inset=0.0, mark=2.6)


@dataclass(frozen=True)
class Axis:
    """What stands beside an axis, its limits (None: those of the values), and its ticks (None: round numbers, or on a log axis the
    values of x)."""

    title: str
    limits: tuple[float, float] | None = None
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value lies between the places of the limits."""
        low, high = self.limits or (0.0, 1.0)
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return start + share * (end - start)


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve, in the units of the axes, with its 95 % interval."""

    x: float
    y: float
    interval: Interval
    title: str


@dataclass(frozen=True)
class Curve:
    """A named line. `color` is 1 to COLORS and brings a shape along; `light` ones are thin and have no whiskers."""

    name: str
    readings: Sequence[CurvePoint]
    color: int
    light: bool = False
    dashed: bool = False
    joined: bool = True

    @property
    def css(self) -> str:
        """Classes of the drawn curve and of its entry in the key."""
        return f"c{self.color}" + (" light" if self.light else "") + (" dashed" if self.dashed else "")

    @property
    def key(self) -> str:
        """The mark that stands in the key, around (11, 6)."""
        return mark(self.color, 11.0, 6.0, FRAME.mark)


@dataclass(frozen=True)
class Level:
    """A horizontal line over the whole chart, with its interval as a band."""

    name: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class DrawnCurve:
    """A curve laid out: the points of its line, whiskers (x, top, bottom), and marks (SVG path, title)."""

    curve: Curve
    line: str
    whiskers: list[tuple[float, float, float]]
    marks: list[tuple[str, str]]


@dataclass(frozen=True)
class ShareBar:
    """A bar from the bottom: `height` of what could be, `reached` of what is (None: nothing to reach)."""

    x: float
    width: float
    height: float
    reached: float | None
    title: str


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws. `levels` are (y, top of the band, its height, level); `bands` are (start, width)."""

    title: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    levels: list[tuple[float, float, float, Level]]
    curves: list[DrawnCurve]
    bands: list[tuple[float, float]]
    frame: Frame
    bars: Sequence[ShareBar] = ()


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` + 1 round values, equally far apart, that lie between low and high."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's value with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def mark(color: int, x: float, y: float, size: float) -> str:
    """SVG path of the mark that goes with a color."""
    corners = POLYGONS[(color - 1) % COLORS]
    if not corners:
        return f"M{x - size:.2f} {y:.2f}a{size:.2f} {size:.2f} 0 1 0 {2 * size:.2f} 0a{size:.2f} {size:.2f} 0 1 0 {-2 * size:.2f} 0z"
    return "M" + "L".join(f"{x + size * dx:.2f} {y + size * dy:.2f}" for dx, dy in corners) + "z"


def line_chart(
    title: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    levels: Sequence[Level] = (),
    bands: Iterable[tuple[float, float]] = (),
    frame: Frame = FRAME,
) -> Chart:
    """Lay out curves over a common pair of axes that cover them, their intervals and levels, unless limits are given.

    Curves with intervals stand a hair beside each other, so that no interval hides another. Points outside of given limits are left out,
    their lines are cut off. `bands` are shaded ranges of x.
    """
    x_low, x_high = x.limits or _limits(reading.x for curve in curves for reading in curve.readings)
    y_low, y_high = y.limits or _limits(_heights(curves, levels, x_low, x_high), padding=0.06)
    x, y = replace(x, limits=(x_low, x_high)), replace(y, limits=(y_low, y_high))
    beside = [curve for curve in curves if not curve.light and any(reading.interval for reading in curve.readings)]

    def x_of(value: float, aside: float = 0.0) -> float:
        return round(x.place(value, frame.left + frame.inset, frame.right - frame.inset) + aside, 2)

    def y_of(value: float) -> float:
        return round(y.place(value, frame.bottom, frame.top), 2)

    def draw(curve: Curve) -> DrawnCurve:
        aside = min(2.5, 10 / len(beside)) * (beside.index(curve) - (len(beside) - 1) / 2) if curve in beside else 0.0
        seen = [reading for reading in curve.readings if x_low <= reading.x <= x_high and y_low <= reading.y <= y_high]
        whiskers = [(x_of(r.x, aside), y_of(r.interval[1]), y_of(r.interval[0])) for r in seen if r.interval and not curve.light]
        size = frame.mark * (0.8 if curve.light else 1)
        marks = [(mark(curve.color, x_of(r.x, aside), y_of(r.y), size), r.title) for r in seen]
        line = " ".join(f"{x_of(r.x, aside)},{y_of(r.y)}" for r in curve.readings) if curve.joined and len(curve.readings) > 1 else ""
        return DrawnCurve(curve, line, whiskers, marks)

    drawn_levels = []
    for level in levels:
        low, high = level.interval or (level.value, level.value)
        drawn_levels.append((y_of(level.value), y_of(high), round(y_of(low) - y_of(high), 2), level))
    values = sorted({reading.x for curve in curves for reading in curve.readings}) if x.log else nice_ticks(x_low, x_high, 10)
    x_ticks = [(value, tick_label(value)) for value in values] if x.ticks is None else x.ticks
    y_ticks = [(value, tick_label(value)) for value in nice_ticks(y_low, y_high)] if y.ticks is None else y.ticks
    return Chart(
        title, x.title, y.title,
        [(x_of(value), label) for value, label in x_ticks if x_low <= value <= x_high],
        [(y_of(value), label) for value, label in y_ticks],
        drawn_levels, [draw(curve) for curve in curves],
        [(x_of(start), round(x_of(end) - x_of(start), 2)) for start, end in bands], frame,
    )  # fmt: skip


def over_heads(curves: Sequence[Curve], heads_per_layer: Sequence[int], y: Axis, frame: Frame = HEADS_FRAME) -> Chart:
    """Lay out curves over a model's heads, layer after layer; the x of head number n of all, from 0 on, is n + 0.5."""
    ends = [0, *accumulate(heads_per_layer)]
    step = (frame.right - frame.left) / ends[-1]
    layers = layer_labels([step * (start + end) / 2 for start, end in pairwise(ends)], 22.0)
    x = Axis("layer", (0.0, float(ends[-1])), ticks=[(middle / step, label) for middle, label in layers])
    return line_chart("", curves, x, y, bands=list(pairwise(map(float, ends)))[::2], frame=frame)


def by_head(series: dict[str, list[list[float]]], y_title: str, log: bool = True) -> Chart:
    """Lay out `series[name][layer][head]` in bits; on a log axis values below the lowest decade are drawn at its lower end."""
    heads_per_layer = [len(heads) for heads in next(iter(series.values()))]
    names = [f"layer {layer}, head {head}" for layer, heads in enumerate(heads_per_layer) for head in range(heads)]
    flat = {name: [value for heads in layers for value in heads] for name, layers in series.items()}
    positive = [value for values in flat.values() for value in values if value > 0] or [1.0]
    ticks = decades(positive) if log else None
    low, high = (ticks[0][0], ticks[-1][0]) if ticks else (0.0, 1.05 * max(positive))
    curves = []
    for color, (name, values) in enumerate(flat.items(), 1):
        titles = [f"{where}: {name} {value:.4g} bits" for where, value in zip(names, values, strict=True)]
        heights = [max(value, low) for value in values]
        readings = [CurvePoint(n + 0.5, y, None, title) for n, (y, title) in enumerate(zip(heights, titles, strict=True))]
        curves.append(Curve(name, readings, color))
    return over_heads(curves, heads_per_layer, Axis(y_title, (low, high), log, ticks))


def layer_labels(middles: Sequence[float], gap: float) -> list[tuple[float, str]]:
    """Numbers of layers at their middles; 0, 2, 4, ... or 0, 5, 10, ... or 0, 10, 20, ... where they would stand closer than `gap`."""
    closest = min((after - before for before, after in pairwise(middles)), default=gap)
    step = next((step for step in (1, 2, 5) if step * closest >= gap), 10)
    return [(round(middle, 2), str(number)) for number, middle in enumerate(middles) if number % step == 0]


def _heights(curves: Iterable[Curve], levels: Iterable[Level], x_low: float, x_high: float) -> Iterable[float]:
    for curve in curves:
        for reading in curve.readings:
            if not x_low <= reading.x <= x_high:
                continue
            yield reading.y
            if reading.interval and not curve.light:
                yield from reading.interval
    for level in levels:
        yield level.value
        yield from level.interval or ()


def _limits(values: Iterable[float], padding: float = 0.0) -> tuple[float, float]:
    """Lowest and highest value with some space around; never of no length."""
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    if high == low:
        return (low / 2, high * 2) if low > 0 and not padding else (low - 1, high + 1)
    return low - padding * (high - low), high + padding * (high - low)
