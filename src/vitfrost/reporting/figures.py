"""Colors, small pictures and heat maps of a page: values in, data URIs and CSS out.

Charts are tables and SVG that the template writes, so their numbers stay readable as text and follow light and dark.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

LEVELS = 64
MAX_DECADES = 4
FROST = ("#e6ebef", "#14628c")


@dataclass(frozen=True)
class Scale:
    """Values to colors: linear or logarithmic between `low` and `high`, in `LEVELS` steps of a color map."""

    title: str
    low: float
    high: float
    colors: str
    log: bool = False

    @classmethod
    def covering(cls, title: str, values: Iterable[np.ndarray], colors: str, log: bool = False) -> Scale:
        """A scale over finite values: from 0, or on a log scale the 2nd percentile of positive ones, to the 99.9th percentile."""
        joined = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in values])
        joined = joined[joined > 0]
        high = float(np.percentile(joined, 99.9)) if joined.size else 1.0
        if not log:
            return cls(title, 0.0, high, colors)
        low = float(np.percentile(joined, 2)) if joined.size else high
        return cls(title, min(max(low, high / 10**MAX_DECADES), high / 10), high, colors, log=True)

    def position(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Where values lie between low (0) and high (1); NaN stays."""
        if not self.log:
            return np.asarray(np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0))
        span = math.log10(self.high / self.low)
        return np.asarray(np.clip(np.log10(np.maximum(values, self.low) / self.low) / span, 0.0, 1.0))

    @cached_property
    def palette(self) -> UInt8[np.ndarray, "levels 3"]:
        """Red, green, blue of the levels."""
        steps = np.linspace(0, 1, LEVELS)
        if self.colors == "frost":
            ends = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in FROST])
            return np.rint(ends[0] + steps[:, None] * (ends[1] - ends[0])).astype(np.uint8)
        return np.rint(matplotlib.colormaps[self.colors](steps)[:, :3] * 255).astype(np.uint8)

    def codes(self, values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Palette indices; LEVELS for NaN."""
        steps = np.rint(np.nan_to_num(self.position(values)) * (LEVELS - 1))
        return np.asarray(np.where(np.isnan(values), LEVELS, steps), dtype=np.uint8)

    def cell(self, value: float) -> str:
        """CSS of a table cell: the color of the value, and black or white ink, whichever contrasts more."""
        red, green, blue = (int(part) for part in self.palette[int(self.codes(np.array(value)))])
        ink = "#fff" if _luminance(red, green, blue) < 0.18 else "#000"
        return f"background:#{red:02x}{green:02x}{blue:02x};color:{ink}"

    @property
    def gradient(self) -> str:
        """CSS gradient of the color bar, from low to high."""
        stops = self.palette[np.linspace(0, LEVELS - 1, 13).round().astype(int)]
        return "linear-gradient(90deg," + ",".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in stops) + ")"

    @property
    def ticks(self) -> list[str]:
        """Labels of the color bar's start, middle and end."""
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [short(value) for value in (self.low, middle, self.high)]


def _luminance(*channels: int) -> float:
    """Relative luminance of an sRGB color (WCAG 2)."""
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def short(value: float) -> str:
    """A number in two significant digits (whole ones in full), very small ones with a power of ten."""
    if value < 0:
        return "−" + short(-value)
    if value == 0 or value >= 1e-3:
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    power = math.floor(math.log10(value))
    return f"{value / 10.0**power:.1f}·{decade(power)}"


def decade(power: int) -> str:
    """A power of ten as a label: 0.001 to 1000 written out, others as 10 with a raised exponent."""
    if -3 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


@dataclass(frozen=True)
class Picture:
    """A caption, a sentence for those who cannot see it, and the data URI."""

    caption: str
    alt: str
    uri: str


def picture(values: Float[np.ndarray, "rows columns"], scale: Scale) -> str:
    """A palette PNG, one pixel per value, as a data URI; NaN is transparent."""
    codes = scale.codes(values)
    image = Image.frombytes("P", (codes.shape[1], codes.shape[0]), codes.tobytes())
    image.putpalette([*scale.palette.reshape(-1).tolist(), 128, 128, 128])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **({"transparency": LEVELS} if (codes == LEVELS).any() else {}))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decades(positive: Sequence[float]) -> list[tuple[float, str]]:
    """Powers of ten that enclose positive values, at most MAX_DECADES below the highest, with their labels."""
    last = math.ceil(math.log10(max(positive) * 1.01))
    powers = range(max(math.floor(math.log10(min(positive))), last - MAX_DECADES), last + 1)
    return [(10.0**power, decade(power)) for power in powers]


@dataclass(frozen=True)
class HeatMap:
    """A layers x heads chart: per layer the text and the CSS of every head's cell."""

    scale: Scale
    rows: list[list[tuple[str, str]]]
    heads: int


def heat_map(
    title: str, values: Sequence[Sequence[float]], colors: str, digits: str, log: bool = False, limits: tuple[float, float] | None = None
) -> HeatMap:
    """Lay out `values[layer][head]`; the scale covers them unless `limits` are given."""
    scale = Scale(title, *limits, colors) if limits else Scale.covering(title, map(np.array, values), colors, log)
    rows = [[(format(value, digits), scale.cell(value)) for value in heads] for heads in values]
    return HeatMap(scale, rows, max(map(len, values)))
