"""Hallucinated maps inside the attention of every family, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitfrost.configs import Hallucinate
from vitfrost.errors import VitfrostError
from vitfrost.methods.hallucination.fit import choose_heads, correlations, fit_mix, head_moments
from vitfrost.methods.hallucination.maps import HeadHallucination
from vitfrost.vit.attention import MapAttention
from vitfrost.vit.reduced_attention import PyramidAttention

from ..formulas import attention_parameters

HEADS, WIDTH, DIM = 5, 15, 3
GRIDS = {"fused": (4, 6), "pyramid": (2, 3), "means": None}
ALL = [
    (kind, computed, Hallucinate(0.5, space=space, inter_map=inter, intra_map=intra, prefix=prefix, bias=bias))
    for kind in GRIDS
    for computed in (3, 1)
    for space in ("logits", "post-softmax")
    for inter in ("linear", "copy", "pair")
    for intra in ("none", "3x3", "5x5", "key-grid")
    for prefix, bias in (("skip", True), ("include", False))
    if (space, inter) != ("post-softmax", "pair") and (kind, intra) != ("means", "key-grid")
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(module: Any, seed: int) -> Any:
    module = module.double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data = drawn(seed + index, *parameter.shape)
    return module


@pytest.mark.parametrize(("kind", "computed", "options"), ALL, ids=str)
def test_rows_sum_to_one_whatever_was_learned_and_parameters_are_those_of_the_formula(
    kind: str, computed: int, options: Hallucinate, attention: Callable[..., MapAttention], run: Callable[..., Tensor]
) -> None:
    module, seen = randomized(attention(kind, options, computed=computed), 3), []
    module.observe(lambda maps, values: seen.append(maps))
    run(module)
    assert seen[0].shape == (2, *module.site.maps_shape[1:])
    assert seen[0].min() >= 0
    assert torch.allclose(seen[0].sum(-1), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
    reduction = [part for name in ("sr", "norm") if (part := getattr(module, name, None)) is not None]
    beside = sum(parameter.numel() for part in reduction for parameter in part.parameters())
    assert sum(p.numel() for p in module.parameters()) - beside == attention_parameters(WIDTH, HEADS, computed, DIM, options)


@pytest.mark.parametrize(("kind", "computed", "options"), ALL, ids=str)
def test_gradients_reach_everything_that_is_learned(
    kind: str, computed: int, options: Hallucinate, attention: Callable[..., MapAttention], run: Callable[..., Tensor]
) -> None:
    module: Any = attention(kind, options, computed=computed).double()
    run(module).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # no gradient: a constant per map before a softmax, a convex mix of one map, and part of a bias of keys
        still = name == "hallucination.mix.bias"
        still |= name == "hallucination.mix.weight" and options.space == "post-softmax" and module.logit_heads == 1
        if name != "k.bias":
            assert (parameter.grad.abs().max() > 1e-9) != still, name


@given(st.integers(0, 999), st.sampled_from(["logits", "post-softmax"]))
def test_one_hot_mixes_copy_maps(seed: int, space: str) -> None:
    sources, logits = [(seed + j) % 3 for j in range(2)], drawn(seed, 2, 3, 4, 6)
    made = HeadHallucination(3, sources, Hallucinate(0.5, space=space, inter_map="copy")).double()
    maps = torch.softmax(logits, -1)
    assert torch.allclose(made(logits), maps[:, [0, 1, 2, *sources]], rtol=1e-12, atol=1e-12)


def test_mix_and_convolution_before_the_softmax_written_out() -> None:
    """Two grids of 4 x 6 logits; every entry of the hallucinated map by hand from the logits around it."""
    made = randomized(HeadHallucination(2, [0], Hallucinate(0.5, prefix="include")), 7)
    logits = drawn(1, 1, 2, 4, 6)
    mix, kernel = made.mix.weight[0], made.convolution.weight[0, 0]
    mixed = mix[0] * logits[0, 0] + mix[1] * logits[0, 1] + made.mix.bias[0]
    rows = mixed.clone()
    for n in range(4):
        for m in range(6):
            for dn, dm in [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if 0 <= n + dn < 4 and 0 <= m + dm < 6:
                    rows[n, m] = rows[n, m] + kernel[dn + 1, dm + 1] * mixed[n + dn, m + dm]
    maps = made(logits)[0]
    assert torch.allclose(maps[2], torch.softmax(rows, -1), rtol=1e-10, atol=1e-12)
    assert torch.allclose(maps[:2], torch.softmax(logits[0], -1), rtol=1e-12, atol=1e-12)


def test_reduced_keys_are_convolved_on_their_own_grid(attention: Callable[..., MapAttention], run: Callable[..., Tensor]) -> None:
    """A PVT layer with 2 x 3 keys: what one key adds to its neighbors on that grid, for each query alone."""
    module: Any = attention("pyramid", Hallucinate(0.5, intra_map="key-grid", bias=False), sources=[1], computed=4).double()
    module.hallucination.convolution.weight.data = drawn(5, 1, 1, 3, 3)
    seen: list[Tensor] = []
    module.observe(lambda maps, values: seen.append(maps), logits=seen.append)
    run(module)
    logits, maps = seen
    assert logits.shape == (2, 4, 24, 6)
    source = logits[0, 1, 7].view(2, 3)
    expected = source + torch.nn.functional.conv2d(source[None, None], module.hallucination.convolution.weight, padding=1)[0, 0]
    assert torch.allclose(maps[0, 4, 7], torch.softmax(expected.flatten(), -1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", GRIDS)
@torch.no_grad()
def test_an_attention_whose_logits_depend_linearly_is_hallucinated_exactly(
    kind: str, attention: Callable[..., MapAttention], run: Callable[..., Tensor]
) -> None:
    """Three heads' queries and keys span the others' logits: S_2 = 2 S_0 and S_3 = S_1, so choice and fit lose nothing."""
    module: Any = randomized(attention(kind, Hallucinate(0.0), computed=HEADS), 11).eval()
    queries, keys = head_rows(module)
    for own, source, factor in ((2, 0, 2.0), (3, 1, 1.0)):
        for parameter, first, scale in ((*queries, factor), (*keys, 1.0)):
            for tensor in (parameter.weight.data, parameter.bias.data):
                rows, others = (slice(first + head * DIM, first + (head + 1) * DIM) for head in (own, source))
                tensor[rows] = scale * tensor[others]
    seen: list[Tensor] = []
    module.observe(logits=seen.append)
    expected = run(module)
    moments = head_moments(seen[0])
    choice = choose_heads(correlations(moments), 3)
    assert choice.others in {(0, 1), (0, 3), (1, 2), (2, 3)}
    hallucination = HeadHallucination(3, choice.sources, Hallucinate(0.5)).double()
    hallucination.mix.set_mix(fit_mix(moments, choice, 0.0))
    module.observe()
    module.hallucinate(hallucination)
    module.keep_logits(choice.order, 3)
    assert torch.allclose(run(module), expected, rtol=1e-8, atol=1e-8)


def head_rows(module: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """The layers that make queries and keys, each with its first row of them."""
    if hasattr(module, "qkv"):
        return (module.qkv, 0), (module.qkv, WIDTH)
    return (module.q, 0), (module.kv if isinstance(module, PyramidAttention) else module.k, 0)


def test_a_given_mix_is_taken_over() -> None:
    mix = drawn(4, 2, 3)
    made = HeadHallucination(3, [0, 1], Hallucinate(0.5)).double()
    made.mix.set_mix(mix)
    assert torch.equal(made.mix.weight, mix)


def test_what_does_not_fit_is_refused(attention: Callable[..., MapAttention], run: Callable[..., Tensor]) -> None:
    with pytest.raises(VitfrostError, match="needs the patch grid"):
        attention("means", Hallucinate(0.5, intra_map="key-grid"))
    with pytest.raises(VitfrostError, match="pair-wise scalar has no effect"):
        Hallucinate(0.5, space="post-softmax", inter_map="pair")
    with pytest.raises(ValueError, match="are not among the 3 computed heads"):
        attention("fused", Hallucinate(0.5), sources=[0, 3])
    made = HeadHallucination(3, [0, 1], Hallucinate(0.5, intra_map="key-grid"), key_grid=(2, 3))
    with pytest.raises(VitfrostError, match="7 keys do not fill a patch grid of 2 x 3"):
        made(torch.zeros(1, 3, 7, 7))
