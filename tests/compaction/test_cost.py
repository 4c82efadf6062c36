"""Ranks that save something, and what both modules save of DeiT: derived figures, counted on models that are built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vitfrost.compaction.cost import feed_forward_macs, feed_forward_parameters, largest_useful_rank, rank_of
from vitfrost.compaction.feed_forward import CompactFeedForward, CompactionOptions
from vitfrost.errors import VitfrostError
from vitfrost.hallucination.attention import HallucinatedAttention
from vitfrost.hallucination.cost import attention_macs, attention_parameters
from vitfrost.hallucination.options import HallucinationOptions
from vitfrost.vit.compat import import_timm

TOKENS, DEPTH = 197, 12


@given(st.integers(1, 300), st.integers(1, 900))
def test_the_largest_useful_rank_is_the_last_that_saves(width: int, hidden: int) -> None:
    rank = largest_useful_rank(width, hidden)
    assert rank * (width + hidden) < width * hidden <= (rank + 1) * (width + hidden)


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


@dataclass(frozen=True)
class Counted:
    parameters: int
    macs: float


@cache
def built(name: str, hallucinated: bool, ratio: float | None) -> Counted:
    """Parameters and products of one image of a DeiT whose blocks are replaced; nothing is computed on the meta device."""
    with torch.device("meta"):
        model: Any = import_timm().create_model(name).eval()
        for block in model.blocks:
            width, hidden = block.attn.qkv.in_features, block.mlp.fc1.out_features
            if hallucinated:
                block.attn = HallucinatedAttention(
                    width, block.attn.num_heads, block.attn.head_dim, HallucinationOptions(), prefix_tokens=1
                )
            if ratio is not None:
                block.mlp = CompactFeedForward(width, hidden, CompactionOptions(ratio=ratio), merged=True)
        with FlopCounterMode(display=False) as counter:
            run(model, torch.empty(1, 3, 224, 224))
    return Counted(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2)


def run(model: Any, x: torch.Tensor) -> None:
    """A plain ViT's blocks, without the keyword arguments that timm gives its own attention."""
    x = model._pos_embed(model.patch_embed(x))
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    model.head(model.norm(x)[:, 0])


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


def saved(size: str, hallucinated: bool, ratio: float | None, derived: bool) -> Counted:
    """What all layers save; `derived`: without the biases of queries and keys, and with the convolution over all N x N."""
    heads = HEADS[size]
    width, hidden = 64 * heads, 256 * heads
    rank = None if ratio is None else rank_of(ratio, width, hidden)
    prefix: Literal["skip", "include"] = "include" if derived else "skip"
    forms = [(HallucinationOptions(heads), None), (HallucinationOptions(None if hallucinated else heads, prefix=prefix), rank)]
    parameters = [attention_parameters(width, heads, 64, o, not derived) + feed_forward_parameters(width, hidden, r) for o, r in forms]
    macs = [attention_macs(TOKENS, TOKENS, width, heads, 64, o, 1) + feed_forward_macs(TOKENS, width, hidden, r) for o, r in forms]
    return Counted(DEPTH * (parameters[0] - parameters[1]), DEPTH * (macs[0] - macs[1]))


@pytest.mark.parametrize(("size", "hallucinated", "ratio", "expected"), ROWS)
def test_reductions_of_deit(size: str, hallucinated: bool, ratio: float | None, expected: tuple[float, float]) -> None:
    """The derivation is met to its last digit; a count of what is built differs by less than that digit."""
    name = f"deit_{size}_patch16_224"
    before, after = built(name, False, None), built(name, hallucinated, ratio)
    counted = Counted(before.parameters - after.parameters, before.macs - after.macs)
    assert counted == saved(size, hallucinated, ratio, derived=False)
    for difference, tolerance in ((saved(size, hallucinated, ratio, derived=True), 0.05), (counted, 0.07)):
        reductions = 100 * difference.parameters / before.parameters, 100 * difference.macs / before.macs
        assert reductions == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("size", "parameters", "macs"), [("tiny", 4.76, 1.04), ("small", 17.63, 3.66), ("base", 68.87, 13.94)])
def test_what_is_left_of_deit(size: str, parameters: float, macs: float) -> None:
    left = built(f"deit_{size}_patch16_224", True, 0.5)
    assert (left.parameters / 1e6, left.macs / 1e9) == pytest.approx((parameters, macs), abs=0.01)
