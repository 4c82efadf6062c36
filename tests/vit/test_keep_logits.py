"""Queries and keys for some heads only: every family against attention written out head by head, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitfrost.configs import Hallucinate
from vitfrost.methods.hallucination.maps import HeadHallucination
from vitfrost.vit.attention import FusedAttention, MapAttention
from vitfrost.vit.compat import import_timm
from vitfrost.vit.reduced_attention import PooledAttention, PyramidAttention
from vitfrost.vit.sites import AttentionSite

import_timm()
from timm.layers import Attention  # noqa: E402  (timm must be imported through the guard)
from timm.models.nextvit import EfficientAttention  # noqa: E402
from timm.models.pvt_v2 import Attention as SpatialAttention  # noqa: E402
from timm.models.swin_transformer import WindowAttention  # noqa: E402

HEADS, DIM, GRID = 5, 3, (4, 6)
WIDTH, TOKENS = HEADS * DIM, 24


def pooled(sr_ratio: int) -> EfficientAttention:
    return EfficientAttention(WIDTH, head_dim=DIM, sr_ratio=sr_ratio)


# how timm makes the layer, the run-time attention, keys, further inputs
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., MapAttention], int, tuple[Any, ...]]] = {
    "fused": (lambda: Attention(WIDTH, HEADS, qkv_bias=True), lambda *of: FusedAttention(*of, scale_queries_first=False), 24, ()),
    "fused with norms": (
        lambda: Attention(WIDTH, HEADS, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm),
        lambda *of: FusedAttention(*of, scale_queries_first=False), 24, (),
    ),
    "pyramid": (lambda: SpatialAttention(WIDTH, HEADS, sr_ratio=2), PyramidAttention, 6, (GRID,)),
    "pyramid, all keys": (lambda: SpatialAttention(WIDTH, HEADS, qkv_bias=False), PyramidAttention, 24, (GRID,)),
    "pyramid, linear": (lambda: SpatialAttention(WIDTH, HEADS, linear_attn=True), PyramidAttention, 49, (GRID,)),
    "means": (lambda: pooled(2), PooledAttention, 6, ()),
    "means, all keys": (lambda: pooled(1), PooledAttention, 24, ()),
}  # fmt: skip


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: str, seed: int) -> tuple[Any, MapAttention, Tensor, tuple[Any, ...]]:
    """timm's layer with weights that matter, ours of a copy, and inputs."""
    build, ours, keys, further = LAYERS[kind]
    layer: Any = build().double().eval()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = drawn(seed + index, *parameter.shape) * (0.5 if parameter.ndim > 1 else 1.0)
    if getattr(layer, "N_ratio", 1) > 1:
        layer.norm.running_mean.add_(0.3)
        layer.norm.running_var.mul_(0.4)
    site = AttentionSite("attn", 0, HEADS, DIM, WIDTH, TOKENS, keys, 0, GRID)
    return layer, ours(copy.deepcopy(layer), site), drawn(seed + 99, 2, TOKENS, WIDTH), further


def tokens_of_keys(layer: Any, x: Tensor) -> Tensor:
    """What keys and values are made of."""
    if isinstance(layer, Attention) or layer.sr is None:
        return x
    if isinstance(layer, EfficientAttention):
        return layer.norm(x.unflatten(1, (-1, layer.N_ratio)).mean(2).mT).mT
    picture = x.mT.reshape(len(x), WIDTH, *GRID)
    reduced = layer.norm(layer.sr(picture if layer.pool is None else layer.pool(picture)).flatten(2).mT)
    return reduced if layer.act is None else layer.act(reduced)


def projections(layer: Any) -> list[tuple[Tensor, Tensor | float]]:
    """Weight and bias that make all queries, all keys, all values."""
    stacked = [getattr(layer, name) for name in ("qkv", "q", "k", "kv", "v") if hasattr(layer, name)]
    weights = torch.cat([part.weight for part in stacked]).chunk(3)
    biases = (0.0, 0.0, 0.0) if stacked[0].bias is None else torch.cat([part.bias for part in stacked]).chunk(3)
    return list(zip(weights, biases, strict=True))


def reference(layer: Any, x: Tensor, logits_of: dict[int, int]) -> Tensor:
    """The layer head by head; head i uses the logits of head `logits_of[i]` (its own where it is not named)."""
    (q, k, v), context = projections(layer), tokens_of_keys(layer, x)
    queries, keys, values = (
        (tokens @ weight.T + bias).unflatten(-1, (HEADS, DIM)) for tokens, (weight, bias) in ((x, q), (context, k), (context, v))
    )
    if isinstance(layer, Attention):
        queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    outputs = []
    for head in range(HEADS):
        source = logits_of.get(head, head)
        logits = queries[:, :, source] @ keys[:, :, source].mT / DIM**0.5
        outputs.append(torch.softmax(logits, dim=-1) @ values[:, :, head])
    mixed = torch.cat(outputs, dim=-1)
    if isinstance(layer, Attention):
        mixed = layer.norm(mixed)
    return mixed @ layer.proj.weight.T + layer.proj.bias


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def with_copies(ours: MapAttention, order: list[int], computed: int, seed: int) -> dict[int, int]:
    """Hallucinate the heads behind the first `computed` of `order` as copies; says whose copy each head is."""
    sources = [(seed + j) % computed for j in range(HEADS - computed)]
    options = Hallucinate(0.5, intra_map="none", inter_map=("linear", "copy", "pair")[seed % 3])
    ours.hallucinate(HeadHallucination(computed, sources, options).double())
    ours.keep_logits(order, computed)
    return {order[computed + j]: order[source] for j, source in enumerate(sources)}


@pytest.mark.parametrize("kind", LAYERS)
@given(st.integers(0, 999), st.permutations(range(HEADS)), st.integers(1, HEADS - 1))
@torch.no_grad()
def test_a_one_hot_mix_is_attention_with_copied_logits(kind: str, seed: int, order: list[int], computed: int) -> None:
    layer, ours, x, further = made(kind, seed)
    assert close(layer(x, *further), reference(layer, x, {}))
    assert close(ours(x, *further), reference(layer, x, {}))
    copied = with_copies(ours, order, computed, seed)
    assert close(ours(x, *further), reference(layer, x, copied))


@pytest.mark.parametrize("kind", LAYERS)
@given(st.integers(0, 999), st.permutations(range(HEADS)))
@torch.no_grad()
def test_all_heads_in_any_order_are_the_same_function(kind: str, seed: int, order: list[int]) -> None:
    layer, ours, x, further = made(kind, seed)
    ours.keep_logits(order, HEADS)
    assert close(ours(x, *further), layer(x, *further))  # fused
    seen: list[Tensor] = []
    ours.observe(lambda maps, values: seen.extend([maps, values]))
    assert close(ours(x, *further), layer(x, *further))  # explicit maps
    (_, _, (weight, bias)), context = projections(layer), tokens_of_keys(layer, x)
    assert close(seen[1], (context @ weight.T + bias).unflatten(-1, (HEADS, DIM)).transpose(1, 2))  # in the original's order
    plain = made(kind, seed)[1]
    plain.observe(lambda maps, values: seen.append(maps))
    plain(x, *further)
    assert close(seen[0], seen[2])


@torch.no_grad()
def test_all_heads_of_shifted_windows_in_any_order_are_the_same_function() -> None:
    layer: Any = WindowAttention(WIDTH, HEADS, window_size=(2, 3)).double().eval()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data = drawn(index, *parameter.shape)
    site = AttentionSite("attn", 0, HEADS, DIM, WIDTH, 6, 6, 0, (2, 3), windows=2)
    ours = FusedAttention(copy.deepcopy(layer), site, scale_queries_first=True)
    x, mask = drawn(50, 4, 6, WIDTH), -100.0 * (drawn(51, 2, 6, 6) > 0.5)
    ours.keep_logits([3, 0, 4, 1, 2], HEADS)
    assert close(ours(x, mask=mask), layer(x, mask=mask))


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("fused", {"qkv": (2 + 2 + 5) * DIM}),
        ("pyramid", {"q": 2 * DIM, "kv": (2 + 5) * DIM}),
        ("pyramid, all keys", {"q": 2 * DIM, "kv": (2 + 5) * DIM}),
        ("means", {"q": 2 * DIM, "k": 2 * DIM, "v": 5 * DIM}),
    ],
)
def test_what_is_left_of_the_projections(kind: str, rows: dict[str, int]) -> None:
    layer, ours, _, _ = made(kind, 1)
    before = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()}
    assert before == {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()}
    order, computed = [4, 1, 0, 2, 3], 2
    ours.keep_logits(order, computed)
    expected = before | {f"{name}.weight": (count, WIDTH) for name, count in rows.items()}
    expected |= {f"{name}.bias": (count,) for name, count in rows.items() if f"{name}.bias" in before}
    assert {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items()} == expected
    state = {key: drawn(index, *tensor.shape) for index, (key, tensor) in enumerate(ours.state_dict().items()) if tensor.ndim}
    ours.load_state_dict(state, strict="means" not in kind)  # BatchNorm also counts its batches
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in state.items())
    _, ours, _, _ = made(kind, 1)
    ours.keep_logits(order, computed)
    kept = [head * DIM + channel for head in order[:computed] for channel in range(DIM)]
    everything = [head * DIM + channel for head in order for channel in range(DIM)]
    selected = [weight[chosen] for (weight, _), chosen in zip(projections(layer), (kept, kept, everything), strict=True)]
    assert torch.equal(torch.cat([getattr(ours, name).weight for name in rows]), torch.cat(selected))
    assert torch.equal(ours.proj.weight, layer.proj.weight[:, everything])


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_observers_see_every_head_at_its_place_in_the_original(kind: str) -> None:
    _, ours, x, further = made(kind, 2)
    order, seen = [4, 1, 0, 2, 3], []
    copied = with_copies(ours, order, 2, seed=1)
    ours.observe(lambda maps, values: seen.append(maps))
    ours(x, *further)
    plain = made(kind, 2)[1]
    plain.observe(lambda maps, values: seen.append(maps))
    plain(x, *further)
    assert close(seen[0], seen[1][:, [copied.get(head, head) for head in range(HEADS)]])
    assert torch.equal(ours.in_original_order(torch.tensor([order]).double()), torch.arange(HEADS)[None].double())


def test_precision_and_what_is_trained_stay_as_they_were() -> None:
    layer = Attention(WIDTH, HEADS).eval()
    layer.qkv.requires_grad_(False)
    site = AttentionSite("attn", 0, HEADS, DIM, WIDTH, TOKENS, TOKENS, 0, GRID)
    ours = FusedAttention(layer, site, scale_queries_first=False)
    ours.keep_logits([4, 3, 2, 1, 0], 2)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert [name for name, parameter in ours.named_parameters() if parameter.requires_grad] == ["proj.weight", "proj.bias"]
    assert ours.qkv.bias is None


@pytest.mark.parametrize(("order", "count"), [([0, 1, 2, 3], 2), ([0, 0, 1, 2, 3], 2), ([0, 1, 2, 3, 4], 6)])
def test_what_does_not_fit_is_refused(order: list[int], count: int) -> None:
    _, ours, _, _ = made("means", 1)
    with pytest.raises(ValueError, match="do not fit 5 heads"):
        ours.keep_logits(order, count)
