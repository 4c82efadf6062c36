"""What a plan leaves of parameters and multiply-accumulates, against the derived table of hMHSA and cFFN (half of the heads, 3 x 3
convolution across (query, key), rank as a ratio of the width), to 0.1 point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfrost.configs import Compact, Hallucinate
from vitfrost.evaluation.inspect import inspect
from vitfrost.model import Model
from vitfrost.plans.choose import plan
from vitfrost.plans.schema import Plan

from ..shapes import shapes_only

pytestmark = pytest.mark.usefixtures("unchecked")  # costs of large models; what they are made of is checked in tests of its own

# reductions in %: parameters / multiply-accumulates; None for the ratio: blocks stay as they are
TABLE: dict[str, dict[tuple[bool, float | None], tuple[float, float]]] = {
    "deit_tiny_patch16_224": {
        (True, None): (5.2, 6.6), (True, 0.75): (7.1, 8.3), (True, 0.667): (10.3, 11.2), (True, 0.6): (12.9, 13.6),
        (True, 0.5): (16.8, 17.0), (True, 0.4): (20.6, 20.5), (True, 0.25): (26.4, 25.7), (False, 0.5): (11.6, 10.4),
    },
    "deit_small_patch16_224": {
        (True, None): (8.0, 9.2), (True, 0.75): (10.0, 11.1), (True, 0.667): (13.4, 14.2), (True, 0.6): (16.1, 16.8),
        (True, 0.5): (20.1, 20.5), (True, 0.4): (24.0, 24.3), (True, 0.25): (30.1, 30.0), (False, 0.5): (12.0, 11.4),
    },
    "deit_base_patch16_224": {(True, None): (8.2, 8.7), (True, 0.5): (20.4, 20.6), (True, 0.25): (30.7, 30.5), (False, 0.5): (12.3, 11.9)},
    "vitfrost_pvt_tiny": {
        (True, None): (5.5, 3.5), (True, 0.75): (7.2, 7.7), (True, 0.5): (14.8, 17.9), (True, 0.25): (22.4, 28.2),
        (False, 0.5): (9.3, 14.5),
    },
    "vitfrost_pvt_small": {(True, None): (5.5, 3.7), (True, 0.5): (15.2, 18.3), (True, 0.25): (23.1, 28.8), (False, 0.5): (9.7, 14.5)},
    "vitfrost_pvt_medium": {(True, None): (5.3, 4.1), (True, 0.5): (14.8, 17.9), (True, 0.25): (22.6, 28.4), (False, 0.5): (9.5, 13.7)},
    "nextvit_small": {(True, None): (2.9, 1.5), (True, 0.5): (13.3, 11.2), (True, 0.25): (25.1, 21.9), (False, 0.5): (10.4, 9.8)},
    "nextvit_base": {(True, None): (2.7, 1.5), (True, 0.5): (13.3, 11.7), (True, 0.25): (25.2, 22.9), (False, 0.5): (10.6, 10.2)},
    "nextvit_large": {(True, None): (2.6, 1.5), (True, 0.5): (13.3, 12.0), (True, 0.25): (25.2, 23.5), (False, 0.5): (10.7, 10.5)},
}  # fmt: skip
LEFT = {"deit_tiny_patch16_224": (4.76e6, 1.04e9), "vitfrost_pvt_tiny": (11.27e6, 1.59e9), "vitfrost_pvt_small": (20.77e6, 3.12e9),
        "vitfrost_pvt_medium": (37.66e6, 5.47e9), "nextvit_small": (27.53e6, 5.14e9)}  # fmt: skip


def planned(name: str, hallucinated: bool, ratio: float | None) -> tuple[dict[str, Any], Plan]:
    with shapes_only():
        methods = [*([Hallucinate(0.5)] if hallucinated else []), *([Compact(ratio)] if ratio else [])]
        chosen = plan(Model.open(name, weights="random"), *methods)
        return inspect(name, plan=chosen), chosen


@pytest.mark.parametrize("name", TABLE)
def test_savings_are_those_of_the_table(name: str) -> None:
    for (hallucinated, ratio), expected in TABLE[name].items():
        found, _ = planned(name, hallucinated, ratio)
        left = found["planned"]
        for key, percent in zip(("parameters_total", "macs_total"), expected, strict=True):
            assert 100 * (1 - left[key] / found[key]) == pytest.approx(percent, abs=0.1), (hallucinated, ratio, key)
        assert left["parameters_total"] == sum(left["parameters"].values())
        if (hallucinated, ratio) == (True, 0.5) and name in LEFT:
            assert left["parameters_total"] == pytest.approx(LEFT[name][0], abs=1.1e4)  # printed to 0.01 M, and once rounded the other way
            assert left["macs_total"] == pytest.approx(LEFT[name][1], abs=5.1e6)


def test_in_next_vit_blocks_after_attention_alone_save_little() -> None:
    for ratio, expected in ((0.5, (5.5, 3.2)), (0.25, (9.4, 5.9))):
        with shapes_only():
            chosen = plan(Model.open("nextvit_small", weights="random"), Hallucinate(0.5), Compact(ratio, blocks="transformer"))
            found = inspect("nextvit_small", plan=chosen)
        left = found["planned"]
        saved = [100 * (1 - left[key] / found[key]) for key in ("parameters_total", "macs_total")]
        assert saved == pytest.approx(expected, abs=0.1)


def test_the_command_shows_it_from_the_plan_alone(call: Callable, tmp_path: Path) -> None:
    plan_file, json_file = tmp_path / "plan.yaml", tmp_path / "found.json"
    made = call("plan", "--model", "vitfrost_digits", "--hallucinate", 0.5, "--compact", 0.5, "--out", plan_file)
    assert (made.status, made.err) == (0, "")
    assert "12 of 24 heads hallucinated, 6 feed-forward blocks compact" in made.out
    shown = call("inspect", "--plan", plan_file, "--json", json_file)
    assert (shown.status, shown.err) == (0, "")
    assert "12 hallucinated heads, 6 compact feed-forward blocks" in " ".join(shown.out.split())
    assert "planned" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert call("inspect", "--model", "test_vit", "--plan", plan_file).status == 2  # the plan of another model
