"""Charts: positions are in the order of the values, ticks are round, and nothing leaves the frame."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.reporting.curves import COLORS, FRAME, Axis, Curve, CurvePoint, Level, by_head, line_chart, mark, nice_ticks, tick_label

X, Y = Axis("x"), Axis("y")
VALUES = st.floats(-100, 100, allow_nan=False, width=32)
POINTS = st.lists(st.tuples(st.floats(0, 100, width=32), VALUES), min_size=1, max_size=9, unique_by=lambda point: point[0])


def curve(points: list[tuple[float, float]], half: float = 0.0, **options) -> Curve:
    readings = [CurvePoint(x, y, (y - half, y + half) if half else None, f"{x} {y}") for x, y in sorted(points)]
    return Curve("one", readings, **({"color": 1} | options))


@given(low=VALUES, length=st.floats(0.001, 1000), most=st.integers(2, 12))
def test_ticks_are_round_equally_far_apart_and_inside(low: float, length: float, most: int) -> None:
    ticks = nice_ticks(low, low + length, most)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 * length <= tick <= low + length * (1 + 1e-6) for tick in ticks)
    steps = np.diff(ticks)
    if len(steps):
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        assert re.fullmatch(r"(1|2|2\.5|5)(\.0*)?e[+-]\d+", f"{steps[0]:.1e}")


@given(points=POINTS, half=st.floats(0.01, 20))
def test_points_lie_in_the_frame_in_the_order_of_their_values(points: list[tuple[float, float]], half: float) -> None:
    chart = line_chart("", [curve(points, half)], X, Y, levels=[Level("zero", 0.0, (-1.0, 1.0))])
    (drawn,) = chart.curves
    assert len(drawn.marks) == len(drawn.whiskers) == len(points)
    xs = [x for x, _, _ in drawn.whiskers]
    assert xs == sorted(xs)
    assert all(FRAME.left < x < FRAME.right and FRAME.top <= high <= low <= FRAME.bottom for x, high, low in drawn.whiskers)
    middle = [(high + low) / 2 for _, high, low in drawn.whiskers]
    order = np.argsort([y for _, y in sorted(points)], kind="stable")
    assert (np.diff(np.array(middle)[order]) <= 0.02).all()
    assert all(FRAME.top <= y <= FRAME.bottom for y, _ in chart.y_ticks)
    y, top, height, _ = chart.levels[0]
    assert top < y < top + height


def test_a_point_stands_where_its_axis_says() -> None:
    chart = line_chart("", [curve([(0.0, 1.0), (10.0, 3.0)])], Axis("x", (0.0, 10.0)), Axis("y", (1.0, 3.0)))
    assert chart.curves[0].line == f"{FRAME.left + 10},{FRAME.bottom} {FRAME.right - 10},{FRAME.top}"
    assert {label: y for y, label in chart.y_ticks}["2"] == (FRAME.top + FRAME.bottom) / 2
    assert {label: x for x, label in chart.x_ticks}["5"] == (FRAME.left + FRAME.right) / 2


def test_points_beyond_limits_are_left_out_and_do_not_stretch_the_axis() -> None:
    near, far = (10.0, 1.0), (90.0, -500.0)
    chart = line_chart("", [curve([near, far])], Axis("x", (0.0, 20.0)), Y)
    assert [title for _, title in chart.curves[0].marks] == ["10.0 1.0"]
    assert min(float(label.replace("−", "-")) for _, label in chart.y_ticks) >= 0


def test_curves_do_not_hide_each_others_intervals_and_light_ones_have_none() -> None:
    curves = [curve([(1.0, 1.0), (2.0, 2.0)], 0.5, color=number) for number in (1, 2, 3)]
    chart = line_chart("", [*curves, curve([(1.0, 1.0)], 0.5, color=4, light=True)], X, Y)
    assert len({drawn.whiskers[0][0] for drawn in chart.curves[:3]}) == 3
    assert chart.curves[3].whiskers == []
    assert len({drawn.line for drawn in chart.curves[:3]}) == 3


def test_a_log_axis_has_the_values_as_ticks_and_equal_factors_equally_far_apart() -> None:
    chart = line_chart("", [curve([(10.0, 0.0), (100.0, 1.0), (1000.0, 2.0)])], Axis("images", log=True), Y)
    assert [label for _, label in chart.x_ticks] == ["10", "100", "1000"]
    first, second, third = (x for x, _ in chart.x_ticks)
    assert second - first == pytest.approx(third - second)


@given(layers=st.lists(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=5), min_size=1, max_size=5))
def test_heads_stand_layer_after_layer_in_the_order_of_their_values(layers: list[list[float]]) -> None:
    chart = by_head({"mean": layers}, "bits")
    (drawn,) = chart.curves
    places = [tuple(map(float, point.split(","))) for point in drawn.line.split()]
    flat = [value for heads in layers for value in heads]
    assert len(drawn.marks) == len(flat)
    assert [title for _, title in drawn.marks][-1].startswith(f"layer {len(layers) - 1}, head {len(layers[-1]) - 1}: mean ")
    assert [label for _, label in chart.x_ticks] == [str(number) for number in range(len(layers))]
    assert len(chart.bands) == (len(layers) + 1) // 2
    if len(flat) > 1:
        numbers = [number for number, heads in enumerate(layers) for _ in heads]
        for (x, y), number in zip(places, numbers, strict=True):
            start, width = chart.bands[number // 2]
            assert (start < x < start + width) == (number % 2 == 0)
            assert chart.frame.top <= y <= chart.frame.bottom
        assert np.all(np.diff(np.array([y for _, y in places])[np.argsort(flat, kind="stable")]) <= 0)
    assert [chart.y_ticks[0][0], chart.y_ticks[-1][0]] == [chart.frame.bottom, chart.frame.top]


def test_a_linear_chart_of_heads_starts_at_zero() -> None:
    chart = by_head({"mean": [[0.0, 1.0], [2.0, 0.5]]}, "bits", log=False)
    heights = [float(point.split(",")[1]) for point in chart.curves[0].line.split()]
    assert heights[0] == chart.frame.bottom == chart.y_ticks[0][0]
    assert chart.y_ticks[0][1] == "0"
    assert heights[1] == pytest.approx((chart.frame.bottom + heights[2]) / 2, abs=0.02)
    assert chart.frame.top <= heights[2] < heights[1] < heights[3] < chart.frame.bottom


def test_every_color_has_a_mark_of_its_own_around_its_place() -> None:
    marks = {color: mark(color, 100.0, 50.0, FRAME.mark) for color in range(1, COLORS + 1)}
    assert len(set(marks.values())) == COLORS
    for color in range(2, COLORS + 1):
        corners = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", marks[color]), dtype=float)
        assert np.abs(corners - [100.0, 50.0]).max() < 7


def test_minus_signs_are_true() -> None:
    assert [tick_label(value) for value in (-2.5, 0.0, 40.0)] == ["−2.5", "0", "40"]
