"""The steps of a quantizer as a waterfall."""

from __future__ import annotations

from typing import Any

import pytest

from vitfrost.reporting.templates import fill
from vitfrost.reporting.waterfall import LEFT, RIGHT, build_waterfall


def record(*steps: tuple[str, float | None, float | None, bool]) -> dict[str, Any]:
    named = [{"step": name, "before": before, "after": after, "kept": kept} for name, before, after, kept in steps]
    return {"method": "fast", "held_out": 38, "steps": named}


STEPS = record(("ranges", 0.0, 0.94, True), ("rotation", 0.94, 0.97, False), ("ridge", 0.94, 0.45, True), ("own", 0.45, 0.45, True))


def test_bars_lie_between_before_and_after() -> None:
    made = build_waterfall(STEPS)
    assert made is not None
    assert [bar.name for bar in made.bars] == ["ranges, nearest levels", "rotation", "weights fitted", "own", "in the end"]
    assert [bar.kind for bar in made.bars] == ["up", "back", "down", "down", "end"]
    up, back, down, still, end = made.bars
    assert up.x == end.x == LEFT
    assert back.x == pytest.approx(up.x + up.width, abs=0.02) == down.x + down.width
    assert down.x == pytest.approx(end.x + end.width, abs=0.02)
    assert still.width == 1
    assert [bar.label for bar in made.bars] == ["+0.940", "+0.030, taken back", "−0.490", "0.000", "0.450"]
    assert all(bar.x + bar.width < RIGHT for bar in made.bars)
    assert [label for _, label in made.ticks] == ["0", "0.2", "0.4", "0.6", "0.8"]


@pytest.mark.parametrize("high", [1e-6, 0.003, 0.07, 1.0, 9.0, 12.0])
def test_ticks_are_few_and_round(high: float) -> None:
    made = build_waterfall(record(("ranges", 0.0, high, True)))
    assert made is not None
    assert 3 <= len(made.ticks) <= 7
    assert all(len(label) <= 6 for _, label in made.ticks)


@pytest.mark.parametrize("nothing", [None, {"method": "RepQ-ViT"}, record(("ranges", 0.0, None, True))])
def test_nothing_to_draw(nothing: Any) -> None:
    assert build_waterfall(nothing) is None


def test_the_section_has_every_value_as_text(parse_page: Any) -> None:
    text = fill("quantization.html.j2", waterfall=build_waterfall(STEPS))
    for value in ("0.9400", "no, taken back", "weights fitted", "−0.490", "38 calibration images"):
        assert value in text
    assert text.count("<rect") == 5
