"""Ranks that save something, and what both modules save of DeiT: derived figures, counted on models that are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitfrost.configs import Hallucinate
from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.cost import feed_forward_macs, largest_useful_rank, rank_of

from ..formulas import attention_macs, attention_parameters, feed_forward_parameters

TOKENS, DEPTH = 197, 12
Counter = Callable[..., tuple[int, float]]


@given(st.integers(1, 300), st.integers(1, 900))
def test_the_largest_useful_rank_is_the_last_that_saves(width: int, hidden: int) -> None:
    rank = largest_useful_rank(width, hidden)
    assert rank * (width + hidden) < width * hidden <= (rank + 1) * (width + hidden)


@given(st.floats(0, 2), st.integers(1, 300), st.integers(1, 6))
def test_a_rank_is_given_exactly_where_it_saves(ratio: float, width: int, expansion: int) -> None:
    """r < m d / (m + 1), and at least 1."""
    rank = round(ratio * width)
    if rank >= 1 and rank * (expansion + 1) < expansion * width:
        assert rank_of(ratio, width, expansion * width) == rank
        return
    with pytest.raises(VitfrostError, match="saves nothing" if rank else "leaves nothing"):
        rank_of(ratio, width, expansion * width)


def test_ratios_that_save_nothing_are_refused() -> None:
    assert rank_of(0.5, 192, 768) == 96
    assert rank_of(0.75, 192, 768) == 144
    with pytest.raises(VitfrostError, match=r"rank 154 \(ratio 0.8\) .* saves nothing; the largest useful rank is 153, a ratio of 0.797"):
        rank_of(0.8, 192, 768)
    with pytest.raises(VitfrostError, match=r"rank 0 .* leaves nothing"):
        rank_of(0.001, 192, 768)
    for ratio, width in ((0.75, 192), (0.7, 192)):
        with pytest.raises(VitfrostError, match="saves nothing"):
            rank_of(ratio, width, 2 * width)


HEADS = {"tiny": 3, "small": 6, "base": 12}
# per ratio: reductions in % of parameters and of products, with hallucinated attention
RATIOS = (None, 0.75, 2 / 3, 0.6, 0.5, 0.4, 0.25)
TABLE = {
    "tiny": [(5.2, 6.6), (7.1, 8.3), (10.3, 11.2), (12.9, 13.6), (16.8, 17.0), (20.6, 20.5), (26.4, 25.7)],
    "small": [(8.0, 9.2), (10.0, 11.1), (13.4, 14.2), (16.1, 16.8), (20.1, 20.5), (24.0, 24.3), (30.1, 30.0)],
    "base": [(8.2, 8.7), (10.2, 10.7), (13.6, 14.0), (16.3, 16.6), (20.4, 20.6), (24.5, 24.6), (30.7, 30.5)],
}
FEED_FORWARD_ONLY = {"tiny": (11.6, 10.4), "small": (12.0, 11.4), "base": (12.3, 11.9)}
ROWS = [(size, True, ratio, expected) for size, row in TABLE.items() for ratio, expected in zip(RATIOS, row, strict=True)]
ROWS += [(size, False, 0.5, expected) for size, expected in FEED_FORWARD_ONLY.items()]


def saved(size: str, hallucinated: bool, ratio: float | None, derived: bool) -> tuple[int, int]:
    """What all layers save; `derived`: without the biases of queries and keys, and with the convolution over all N x N."""
    heads = HEADS[size]
    width, hidden = 64 * heads, 256 * heads
    rank = None if ratio is None else rank_of(ratio, width, hidden)
    prefix: Literal["skip", "include"] = "include" if derived else "skip"
    options = Hallucinate(0.5, prefix=prefix)
    forms = [(heads, None), (-(-heads // 2) if hallucinated else heads, rank)]
    parameters = [
        attention_parameters(width, heads, g, 64, options, not derived) + feed_forward_parameters(width, hidden, r) for g, r in forms
    ]
    macs = [attention_macs(TOKENS, TOKENS, width, heads, g, 64, options, 1) + feed_forward_macs(TOKENS, width, hidden, r) for g, r in forms]
    return DEPTH * (parameters[0] - parameters[1]), DEPTH * (macs[0] - macs[1])


@pytest.mark.parametrize(("size", "hallucinated", "ratio", "expected"), ROWS)
def test_the_derived_reductions_of_deit(
    count: Counter, size: str, hallucinated: bool, ratio: float | None, expected: tuple[float, float]
) -> None:
    before = count(f"deit_{size}_patch16_224")
    reductions = [100 * less / whole for less, whole in zip(saved(size, hallucinated, ratio, derived=True), before, strict=True)]
    assert reductions == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("hallucinated", "ratio"), [(True, None), (True, 0.5), (True, 0.25), (False, 0.5)])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_what_is_built_saves_what_the_formulas_say(count: Counter, size: str, hallucinated: bool, ratio: float | None) -> None:
    """Exactly so, and within the derivation's last digit."""
    name = f"deit_{size}_patch16_224"
    before, after = count(name), count(name, hallucinated, ratio)
    counted = before[0] - after[0], before[1] - after[1]
    assert counted == saved(size, hallucinated, ratio, derived=False)
    expected = TABLE[size][RATIOS.index(ratio)] if hallucinated else FEED_FORWARD_ONLY[size]
    assert [100 * less / whole for less, whole in zip(counted, before, strict=True)] == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize(("size", "parameters", "macs"), [("tiny", 4.76, 1.04), ("small", 17.63, 3.66), ("base", 68.87, 13.94)])
def test_what_is_left_of_deit(count: Counter, size: str, parameters: float, macs: float) -> None:
    left = count(f"deit_{size}_patch16_224", True, 0.5)
    assert (left[0] / 1e6, left[1] / 1e9) == pytest.approx((parameters, macs), abs=0.01)


def test_formulas_of_the_whole_block() -> None:
    assert feed_forward_parameters(8, 24) == sum(p.numel() for layer in (nn.Linear(8, 24), nn.Linear(24, 8)) for p in layer.parameters())
    assert feed_forward_parameters(8, 24, 4) == feed_forward_parameters(8, 24) - 24 * 8 + 4 * (24 + 8)
    assert feed_forward_macs(5, 8, 24) == 2 * 5 * 8 * 24
    assert feed_forward_macs(5, 8, 24, 4) == 5 * (8 * 24 + 4 * (8 + 24))
