"""The attention layer's formulas against their derivation and against a count by running the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitfrost.configs import Hallucinate
from vitfrost.methods.hallucination.cost import generation_macs
from vitfrost.vit.attention import MapAttention

from ..formulas import attention_macs, attention_parameters

HEADS, DIM, WIDTH = 5, 3, 15
KEYS = {"fused": 25, "pyramid": 6, "means": 6}  # of 25, 24, 24 queries, the first with a class token


@pytest.mark.parametrize(
    ("space", "inter"), [("logits", "linear"), ("logits", "copy"), ("logits", "pair"), ("post-softmax", "linear"), ("post-softmax", "copy")]
)
@pytest.mark.parametrize("intra", ["none", "3x3", "5x5", "key-grid"])
@pytest.mark.parametrize("prefix", ["skip", "include"])
@pytest.mark.parametrize("kind", KEYS)
def test_multiply_accumulates_are_those_of_a_run(
    kind: str, space: str, inter: str, intra: str, prefix: str, attention: Callable[..., MapAttention], run: Callable[..., Any]
) -> None:
    if (kind, intra) == ("means", "key-grid"):
        intra = "none"
    options = Hallucinate(0.5, space=space, inter_map=inter, intra_map=intra, prefix=prefix)
    with torch.device("meta"):
        module = attention(kind, options)
    site = module.site
    with FlopCounterMode(display=False) as counter:
        run(module)
    assert site.keys == KEYS[kind]
    scalings = site.queries * site.keys * 2 if inter == "pair" else 0  # products by a scalar, which the counter leaves out
    reduction = site.keys * WIDTH * WIDTH * 4 if kind == "pyramid" else 0  # 2 x 2 tokens of all channels, not part of the formula
    counted = counter.get_total_flops() / 2 / 2 + scalings - reduction  # two images
    assert counted == attention_macs(site.queries, site.keys, WIDTH, HEADS, 3, DIM, options, site.prefix_tokens)
    assert 0 <= generation_macs(site.queries, site.keys, 3, 2, options, site.prefix_tokens) < counted


@pytest.mark.parametrize(("heads", "computed"), [(3, 2), (6, 3), (12, 6), (5, 3), (8, 1)])
@pytest.mark.parametrize("kernel", [("none", 0), ("3x3", 3), ("5x5", 5)])
def test_savings_are_the_derived_ones(heads: int, computed: int, kernel: tuple[str, int]) -> None:
    """2 d q D (+ 2 q D) parameters less, g q + q + q k^2 more; 2 N d q D + N^2 q D products less, N^2 (g q + q k^2) more."""
    dim, tokens, q = 64, 197, heads - computed
    d, k = heads * dim, kernel[1]
    options = Hallucinate(0.5, intra_map=kernel[0], prefix="include")
    saved = attention_parameters(d, heads, heads, dim, options) - attention_parameters(d, heads, computed, dim, options)
    assert saved == 2 * d * q * dim + 2 * q * dim - (computed * q + q + q * k**2)
    assert attention_parameters(d, heads, heads, dim, options) == 4 * d * d + 4 * d
    assert attention_macs(tokens, tokens, d, heads, heads, dim, options) == 4 * tokens * d**2 + 2 * tokens**2 * d
    less = attention_macs(tokens, tokens, d, heads, heads, dim, options) - attention_macs(tokens, tokens, d, heads, computed, dim, options)
    assert less == 2 * tokens * d * q * dim + tokens**2 * q * dim - tokens**2 * (computed * q + q * k**2)
