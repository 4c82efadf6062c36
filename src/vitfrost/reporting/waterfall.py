"""The steps of a quantizer as a waterfall: what each did to the divergence from the original. Records go in, lengths of an SVG come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tables import Table, TableCell

NAMES = {
    "ranges": "ranges, nearest levels",
    "rotation": "rotation",
    "ridge": "weights fitted",
    "rounding": "rounding, biases",
    "polish": "gradient steps",
}
LEFT, RIGHT, ROW, TOP = 176.0, 610.0, 30.0, 10.0


@dataclass(frozen=True)
class StepBar:
    """One step: where its bar lies, what it is called, and `kind`: "up", "down", "back" (taken back) or "end"."""

    name: str
    kind: str
    x: float
    y: float
    width: float
    label: str
    label_x: float


@dataclass(frozen=True)
class Waterfall:
    """Bars one below the other, lines between them (x, y from, y to), ticks (x, text), and the same in numbers."""

    method: str
    held_out: int
    measure: str
    axis: str
    height: float
    bars: list[StepBar]
    links: list[tuple[float, float, float]]
    ticks: list[tuple[float, str]]
    table: Table


def build_waterfall(quantization: Mapping[str, Any] | None) -> Waterfall | None:
    """From an artifact's record of its quantization; None for a quantizer without steps, or whose divergences are not finite."""
    steps: Sequence[Mapping[str, Any]] = (quantization or {}).get("steps") or ()
    if quantization is None or not steps or not all(_finite(step["before"]) and _finite(step["after"]) for step in steps):
        return None
    high = max(max(step["before"], step["after"]) for step in steps) or 1.0
    tick = _tick(high)
    ticks = [number * tick for number in range(int(high / tick + 1e-9) + 1)]

    def place(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / (high * 1.12)

    bars, links, at = [], [], steps[0]["before"]
    for number, step in enumerate(steps):
        y = TOP + number * ROW
        low, top = sorted((step["before"], step["after"]))
        kind = "back" if not step["kept"] else "up" if step["after"] > step["before"] else "down"
        change = step["after"] - step["before"]
        label = f"{'+' if change > 0 else '−' if change < 0 else ''}{abs(change):.3f}{', taken back' if kind == 'back' else ''}"
        width = round(max(place(top) - place(low), 1.0), 2)
        bars.append(StepBar(NAMES.get(step["step"], step["step"]), kind, round(place(low), 2), y, width, label, round(place(top) + 6, 2)))
        at = step["after"] if step["kept"] else step["before"]
        links.append((round(place(at), 2), y, y + 2 * ROW - 8))
    y = TOP + len(steps) * ROW
    bars.append(StepBar("in the end", "end", LEFT, y, round(max(place(at) - LEFT, 1.0), 2), f"{at:.3f}", round(place(at) + 6, 2)))
    rows = [
        (
            bar.name,
            [TableCell(f"{step['before']:.4f}"), TableCell(f"{step['after']:.4f}"), TableCell("yes" if step["kept"] else "no, taken back")],
        )
        for bar, step in zip(bars, steps, strict=False)
    ]
    measure, axis, of = "KL(original ‖ quantized) of the outputs, in nats", "KL divergence, nats", "Divergence from the original in nats"
    if quantization.get("outputs", "classes") != "classes":
        measure, axis, of = "the relative error of the features", "relative error", "Relative error of the features"
    table = Table(f"{of}, before and after each step", "Step", ["before", "after", "kept"], rows)
    labels = [(round(place(value), 2), f"{value:.4g}") for value in ticks]
    height = TOP + (len(steps) + 1) * ROW
    return Waterfall(quantization["method"], quantization["held_out"], measure, axis, height, bars, links, labels, table)


def _finite(value: float | None) -> bool:
    return value is not None and value < float("inf")


def _tick(high: float) -> float:
    """A round step that makes three to seven ticks."""
    power = 10.0 ** (len(f"{int(high)}") - 1) if high >= 1 else 1.0
    while power > high:
        power /= 10
    return next(step for step in (power / 5, power / 2, power, 2 * power) if high / step <= 6)
