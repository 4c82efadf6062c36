"""The attention layer's formulas against their derivation and against a count by running the module."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitfrost.hallucination.attention import HallucinatedAttention
from vitfrost.hallucination.cost import attention_macs, attention_parameters
from vitfrost.hallucination.options import HallucinationOptions

WIDTH, HEADS, DIM, GRID, PREFIX = 10, 5, 4, (3, 4), 1
TOKENS = PREFIX + 12


@pytest.mark.parametrize(
    ("space", "inter"), [("logits", "linear"), ("logits", "copy"), ("logits", "pair"), ("post-softmax", "linear"), ("post-softmax", "copy")]
)
@pytest.mark.parametrize("intra", ["none", "3x3", "5x5", "key-grid"])
@pytest.mark.parametrize("prefix", ["skip", "include"])
def test_multiply_accumulates_are_those_of_a_run(space: str, inter: str, intra: str, prefix: str) -> None:
    options = HallucinationOptions(None, space, inter, intra, prefix)
    with torch.device("meta"):
        layer = HallucinatedAttention(WIDTH, HEADS, DIM, options, prefix_tokens=PREFIX, key_grid=GRID)
        with FlopCounterMode(display=False) as counter:
            layer(torch.empty(1, TOKENS, WIDTH))
    scalings = 2 * TOKENS * TOKENS if inter == "pair" else 0  # products by a scalar, which the counter leaves out
    assert counter.get_total_flops() / 2 + scalings == attention_macs(TOKENS, TOKENS, WIDTH, HEADS, DIM, options, PREFIX)


def test_reduced_keys_count_as_they_run() -> None:
    options, keys = HallucinationOptions(), 6
    with torch.device("meta"):
        layer = HallucinatedAttention(WIDTH, HEADS, DIM, options, separate_keys=True)
        with FlopCounterMode(display=False) as counter:
            layer(torch.empty(1, TOKENS, WIDTH), torch.empty(1, keys, WIDTH))
    assert counter.get_total_flops() / 2 == attention_macs(TOKENS, keys, WIDTH, HEADS, DIM, options)
    assert sum(p.numel() for p in layer.parameters()) == attention_parameters(WIDTH, HEADS, DIM, options)


@pytest.mark.parametrize(("heads", "computed"), [(3, 2), (6, 3), (12, 6), (5, 3), (8, 1)])
@pytest.mark.parametrize("kernel", [("none", 0), ("3x3", 3), ("5x5", 5)])
def test_savings_are_the_derived_ones(heads: int, computed: int, kernel: tuple[str, int]) -> None:
    """2 d q D (+ 2 q D) parameters less, g q + q + q k^2 more; 2 N d q D + N^2 q D products less, N^2 (g q + q k^2) more."""
    dim, tokens, q = 64, 197, heads - computed
    d, k = heads * dim, kernel[1]
    before, after = HallucinationOptions(heads), HallucinationOptions(computed, intra_map=kernel[0], prefix="include")
    saved = attention_parameters(d, heads, dim, before) - attention_parameters(d, heads, dim, after)
    assert saved == 2 * d * q * dim + 2 * q * dim - (computed * q + q + q * k**2)
    assert attention_parameters(d, heads, dim, before) == 4 * d * d + 4 * d
    assert attention_macs(tokens, tokens, d, heads, dim, before) == 4 * tokens * d**2 + 2 * tokens**2 * d
    less = attention_macs(tokens, tokens, d, heads, dim, before) - attention_macs(tokens, tokens, d, heads, dim, after)
    assert less == 2 * tokens * d * q * dim + tokens**2 * q * dim - tokens**2 * (computed * q + q * k**2)
