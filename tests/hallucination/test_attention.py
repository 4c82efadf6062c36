"""HallucinatedAttention against multi-head attention written out, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfrost.errors import VitfrostError
from vitfrost.hallucination.attention import HallucinatedAttention
from vitfrost.hallucination.cost import attention_parameters
from vitfrost.hallucination.options import HallucinationOptions

HEADS, DIM, WIDTH, GRID, PREFIX = 5, 3, 7, (2, 3), 1
TOKENS = PREFIX + GRID[0] * GRID[1]
ALL = [
    HallucinationOptions(computed, space, inter, intra, prefix, bias)
    for computed in (None, 1)
    for space in ("logits", "post-softmax")
    for inter in ("linear", "copy", "pair")
    for intra in ("none", "3x3", "5x5", "key-grid")
    for prefix, bias in (("skip", True), ("include", False))
    if (space, inter) != ("post-softmax", "pair")
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_weights(seed: int, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inner = heads * DIM
    return drawn(seed, 3 * inner, WIDTH), drawn(seed + 1, 3 * inner), drawn(seed + 2, WIDTH, inner), drawn(seed + 3, WIDTH)


def reference(weights: tuple[Tensor, ...], x: Tensor, context: Tensor, heads: int, logits_of: dict[int, int]) -> Tensor:
    """Multi-head attention head by head; head i uses the logits of head `logits_of[i]` (its own where it is not named)."""
    qkv, bias, proj, proj_bias = weights
    inner = heads * DIM
    outputs = []
    for head in range(heads):
        source = logits_of.get(head, head)
        own, other = slice(head * DIM, (head + 1) * DIM), slice(source * DIM, (source + 1) * DIM)
        q = x @ qkv[:inner][other].T + bias[:inner][other]
        k = context @ qkv[inner : 2 * inner][other].T + bias[inner : 2 * inner][other]
        v = context @ qkv[2 * inner :][own].T + bias[2 * inner :][own]
        outputs.append(torch.softmax(q @ k.transpose(1, 2) / DIM**0.5, dim=-1) @ v)
    return torch.cat(outputs, dim=-1) @ proj.T + proj_bias


def randomised(layer: HallucinatedAttention, seed: int) -> HallucinatedAttention:
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = drawn(seed + index, *parameter.shape)
    return layer


@given(
    st.integers(0, 999), st.permutations(range(HEADS)), st.integers(1, HEADS), st.booleans(), st.sampled_from(["linear", "copy", "pair"])
)
def test_one_hot_mix_without_convolution_is_attention_with_copied_logits(
    seed: int, order: list[int], computed: int, separate: bool, inter: str
) -> None:
    weights, x = layer_weights(seed), drawn(seed + 9, 2, TOKENS, WIDTH)
    context = drawn(seed + 8, 2, 4, WIDTH) if separate else None
    sources = [(seed + j) % computed for j in range(HEADS - computed)]
    options = HallucinationOptions(computed, inter_map=inter)
    layer = HallucinatedAttention.from_attention(*weights, HEADS, options, order=order, sources=sources, separate_keys=separate)
    copied = {order[computed + j]: order[source] for j, source in enumerate(sources)}
    expected = reference(weights, x, x if context is None else context, HEADS, copied)
    assert torch.allclose(layer(x, context), expected, rtol=1e-12, atol=1e-11)


@given(st.integers(0, 999), st.permutations(range(HEADS)), st.sampled_from(["logits", "post-softmax"]))
def test_any_order_of_heads_is_the_original_where_all_are_computed(seed: int, order: list[int], space: str) -> None:
    weights, x = layer_weights(seed), drawn(seed + 9, 2, TOKENS, WIDTH)
    options = HallucinationOptions(HEADS, space)
    layer = HallucinatedAttention.from_attention(*weights, HEADS, options, order=order)
    assert torch.allclose(layer(x), reference(weights, x, x, HEADS, {}), rtol=1e-12, atol=1e-11)


def test_post_softmax_copy_is_attention_with_copied_logits() -> None:
    weights, x = layer_weights(3), drawn(12, 2, TOKENS, WIDTH)
    layer = HallucinatedAttention.from_attention(*weights, HEADS, HallucinationOptions(3, "post-softmax", "copy"), sources=[2, 0])
    assert torch.allclose(layer(x), reference(weights, x, x, HEADS, {3: 2, 4: 0}), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("space", ["logits", "post-softmax"])
def test_a_layer_with_one_head_stays_as_it_is(space: str) -> None:
    weights, x = layer_weights(5, heads=1), drawn(6, 2, TOKENS, WIDTH)
    layer = HallucinatedAttention.from_attention(*weights, 1, HallucinationOptions(space=space))
    assert layer.mix is None
    assert torch.allclose(layer(x), reference(weights, x, x, 1, {}), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_rows_sum_to_one_whatever_was_learned_and_parameters_are_those_of_the_formula(options: HallucinationOptions) -> None:
    layer = randomised(HallucinatedAttention(WIDTH, HEADS, DIM, options, prefix_tokens=PREFIX, key_grid=GRID), 3)
    q, k, _ = layer.project(drawn(1, 2, TOKENS, WIDTH), None)
    maps = layer.maps(q, k)
    assert maps.shape == (2, HEADS, TOKENS, TOKENS)
    assert maps.min() >= 0
    assert torch.allclose(maps.sum(-1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == attention_parameters(WIDTH, HEADS, DIM, options)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_gradients_reach_everything_that_is_learned(options: HallucinationOptions) -> None:
    layer = HallucinatedAttention(WIDTH, HEADS, DIM, options, prefix_tokens=PREFIX, key_grid=GRID).double()
    layer(drawn(1, 2, TOKENS, WIDTH)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        # no gradient: a constant per map before a softmax, and a convex mix of one map
        still = name == "mix.bias" or (name == "mix.weight" and options.space == "post-softmax" and layer.computed == 1)
        assert (parameter.grad.abs().max() > 1e-9) != still, name


def test_mix_and_convolution_before_the_softmax_written_out() -> None:
    """One hallucinated entry, computed by hand from the logits around it."""
    options = HallucinationOptions(2, prefix="include")
    layer = randomised(HallucinatedAttention(WIDTH, 3, DIM, options), 7)
    q, k, _ = layer.project(drawn(1, 1, TOKENS, WIDTH), None)
    logits = torch.einsum("bgnd,bgmd->bgnm", q, k)[0] / DIM**0.5
    mix, bias = layer.mix.weight[0], layer.mix.bias[0]
    mixed = mix[0] * logits[0] + mix[1] * logits[1] + bias
    kernel = layer.convolution.weight[0, 0]
    rows = mixed.clone()
    for n in range(TOKENS):
        for m in range(TOKENS):
            for dn, dm in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if 0 <= n + dn < TOKENS and 0 <= m + dm < TOKENS:
                    rows[n, m] = rows[n, m] + kernel[dn + 1, dm + 1] * mixed[n + dn, m + dm]
    assert torch.allclose(layer.maps(q, k)[0, 2], torch.softmax(rows, -1), rtol=1e-10, atol=1e-12)


def test_a_given_mix_is_taken_over() -> None:
    mix = drawn(4, 2, 3)
    layer = HallucinatedAttention.from_attention(*layer_weights(1), HEADS, HallucinationOptions(), mix=mix)
    assert torch.equal(layer.mix.weight, mix)


def test_dtype_and_missing_biases_follow_the_weights() -> None:
    qkv, _, proj, _ = layer_weights(1)
    layer = HallucinatedAttention.from_attention(qkv.float(), None, proj.float(), None, HEADS, HallucinationOptions())
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert layer.qkv.bias is None
    assert layer.proj.bias is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(VitfrostError, match="6 computed heads do not fit a layer of 5 heads"):
        HallucinatedAttention(WIDTH, HEADS, DIM, HallucinationOptions(6))
    with pytest.raises(VitfrostError, match="needs the patch grid"):
        HallucinatedAttention(WIDTH, HEADS, DIM, HallucinationOptions(intra_map="key-grid"))
    with pytest.raises(VitfrostError, match="pair-wise scalar has no effect"):
        HallucinationOptions(space="post-softmax", inter_map="pair")
    with pytest.raises(VitfrostError, match="do not fit 4 heads"):
        HallucinatedAttention.from_attention(*layer_weights(1), 4, HallucinationOptions())
    with pytest.raises(VitfrostError, match="7 keys do not fill a patch grid of 2 x 3"):
        HallucinatedAttention(WIDTH, HEADS, DIM, HallucinationOptions(intra_map="key-grid"), key_grid=GRID)(torch.zeros(1, 7, WIDTH))
    with pytest.raises(ValueError, match="separate_keys"):
        HallucinatedAttention(WIDTH, HEADS, DIM, HallucinationOptions())(torch.zeros(1, 7, WIDTH), torch.zeros(1, 7, WIDTH))
