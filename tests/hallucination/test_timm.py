"""Weights of timm's attention layers, fused and with reduced keys, are taken over unchanged."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfrost.hallucination.attention import HallucinatedAttention
from vitfrost.hallucination.fit import choose_heads, correlations, fit_mix, head_moments
from vitfrost.hallucination.options import HallucinationOptions
from vitfrost.vit.compat import import_timm

import_timm()
from timm.layers import Attention  # noqa: E402  (timm must be imported through the guard)
from timm.models.nextvit import EfficientAttention  # noqa: E402
from timm.models.pvt_v2 import Attention as PyramidAttention  # noqa: E402

WIDTH, HEADS, ORDER = 24, 4, [2, 0, 3, 1]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_computed(*weights: Tensor, separate: bool) -> HallucinatedAttention:
    return HallucinatedAttention.from_attention(*weights, HEADS, HallucinationOptions(HEADS), order=ORDER, separate_keys=separate)


@torch.no_grad()
def test_fused_attention() -> None:
    layer, x = Attention(WIDTH, HEADS, qkv_bias=True).double(), drawn(1, 2, 10, WIDTH)
    ours = all_computed(layer.qkv.weight, layer.qkv.bias, layer.proj.weight, layer.proj.bias, separate=False)
    assert torch.allclose(ours(x), layer(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_attention_with_averaged_keys() -> None:
    layer, x = EfficientAttention(WIDTH, head_dim=WIDTH // HEADS, sr_ratio=2).double().eval(), drawn(1, 2, 12, WIDTH)
    weight, bias = (torch.cat([part.get_parameter(name) for part in (layer.q, layer.k, layer.v)]) for name in ("weight", "bias"))
    ours = all_computed(weight, bias, layer.proj.weight, layer.proj.bias, separate=True)
    context = layer.norm(layer.sr(x.transpose(1, 2))).transpose(1, 2)
    assert context.shape[1] == 3
    assert torch.allclose(ours(x, context), layer(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_attention_with_convolved_keys() -> None:
    layer, x = PyramidAttention(WIDTH, HEADS, sr_ratio=2).double().eval(), drawn(1, 2, 24, WIDTH)
    weight, bias = (torch.cat([part.get_parameter(name) for part in (layer.q, layer.kv)]) for name in ("weight", "bias"))
    ours = all_computed(weight, bias, layer.proj.weight, layer.proj.bias, separate=True)
    context = layer.norm(layer.sr(x.transpose(1, 2).reshape(2, WIDTH, 4, 6)).flatten(2).transpose(1, 2))
    assert torch.allclose(ours(x, context), layer(x, (4, 6)), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_attention_whose_logits_depend_linearly_is_hallucinated_exactly() -> None:
    """Two heads' queries and keys span the others' logits: S_2 = 2 S_0 and S_3 = S_0, so choice and fit lose nothing."""
    layer, x = Attention(WIDTH, HEADS, qkv_bias=False).double(), drawn(1, 2, 10, WIDTH)
    q, k, _ = layer.qkv.weight.view(3, HEADS, -1, WIDTH)
    q[2], k[2], q[3], k[3] = 2 * q[0], k[0], q[0], k[0]
    joint = layer.qkv(x).view(2, 10, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    moments = head_moments(joint[0] @ joint[1].transpose(-2, -1))
    choice = choose_heads(correlations(moments), 2)
    assert set(choice.kept) == {0, 1}
    ours = HallucinatedAttention.from_attention(
        layer.qkv.weight, None, layer.proj.weight, layer.proj.bias, HEADS, HallucinationOptions(),
        order=choice.order, sources=choice.sources, mix=fit_mix(moments, choice, 0.0),
    )  # fmt: skip
    assert torch.allclose(ours(x), layer(x), rtol=1e-9, atol=1e-9)
