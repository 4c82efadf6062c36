"""Line charts as plain numbers: values with intervals go in, positions of an SVG come out; the template draws them.

Lengths are in SVG units. Every point keeps its value as a title, and colors go with a shape of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520.0, 330.0, 62.0, 510.0, 12.0, 280.0
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
MARK = 4.2

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Reading:
    """A point of a curve, in the units of the axes, with its 95 % interval."""

    x: float
    y: float
    interval: Interval
    title: str


@dataclass(frozen=True)
class Curve:
    """A named line. `color` is 1 to COLORS and brings a shape along; `light` ones are thin and have no whiskers."""

    name: str
    readings: Sequence[Reading]
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
        return mark(self.color, 11.0, 6.0)


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
class Chart:
    """Everything that the template draws. `levels` are (y, top of the band, its height, level)."""

    title: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    levels: list[tuple[float, float, float, Level]]
    curves: list[DrawnCurve]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM


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


def mark(color: int, x: float, y: float, size: float = MARK) -> str:
    """SVG path of the mark that goes with a color."""
    corners = POLYGONS[(color - 1) % COLORS]
    if not corners:
        return f"M{x - size:.2f} {y:.2f}a{size:.2f} {size:.2f} 0 1 0 {2 * size:.2f} 0a{size:.2f} {size:.2f} 0 1 0 {-2 * size:.2f} 0z"
    return "M" + "L".join(f"{x + size * dx:.2f} {y + size * dy:.2f}" for dx, dy in corners) + "z"


def line_chart(
    title: str,
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    *,
    levels: Sequence[Level] = (),
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    x_log: bool = False,
) -> Chart:
    """Lay out curves over a common pair of axes that cover them, their intervals and levels, unless limits are given.

    With `x_log` the ticks are the curves' own x values. Curves stand a hair beside each other, so that no interval hides another.
    Points outside of given limits are left out, their lines are cut off.
    """
    x_low, x_high = x_limits or _limits(reading.x for curve in curves for reading in curve.readings)
    y_low, y_high = y_limits or _limits(_heights(curves, levels, x_low, x_high), padding=0.06)
    across = math.log10 if x_log else float

    def place(value: float, low: float, high: float, start: float, end: float, by: Callable[[float], float] = float) -> float:
        return round(start + (by(value) - by(low)) / (by(high) - by(low)) * (end - start), 2)

    def y_of(value: float) -> float:
        return place(value, y_low, y_high, BOTTOM, TOP)

    beside = [curve for curve in curves if not curve.light]

    def draw(curve: Curve) -> DrawnCurve:
        aside = 0.0 if curve.light else min(2.5, 10 / len(beside)) * (beside.index(curve) - (len(beside) - 1) / 2)

        def x_of(value: float) -> float:
            return round(place(value, x_low, x_high, LEFT + 10, RIGHT - 10, across) + aside, 2)

        seen = [reading for reading in curve.readings if x_low <= reading.x <= x_high and y_low <= reading.y <= y_high]
        whiskers = [(x_of(r.x), y_of(r.interval[1]), y_of(r.interval[0])) for r in seen if r.interval and not curve.light]
        marks = [(mark(curve.color, x_of(r.x), y_of(r.y), MARK * (0.8 if curve.light else 1)), r.title) for r in seen]
        line = " ".join(f"{x_of(r.x)},{y_of(r.y)}" for r in curve.readings) if curve.joined and len(curve.readings) > 1 else ""
        return DrawnCurve(curve, line, whiskers, marks)

    drawn_levels = []
    for level in levels:
        low, high = level.interval or (level.value, level.value)
        drawn_levels.append((y_of(level.value), y_of(high), round(y_of(low) - y_of(high), 2), level))
    ticks = sorted({reading.x for curve in curves for reading in curve.readings}) if x_log else nice_ticks(x_low, x_high, 10)
    return Chart(
        title, x_title, y_title,
        [(place(value, x_low, x_high, LEFT + 10, RIGHT - 10, across), tick_label(value)) for value in ticks if x_low <= value <= x_high],
        [(y_of(value), tick_label(value)) for value in nice_ticks(y_low, y_high)],
        drawn_levels, [draw(curve) for curve in curves],
    )  # fmt: skip


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
