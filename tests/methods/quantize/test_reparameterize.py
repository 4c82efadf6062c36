"""The re-parameterization is an identity on the layer's output, and makes channel-wise codes layer-wise ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from vitfrost.methods.quantize.quantizers import uniform_codes, uniform_parameters
from vitfrost.methods.quantize.ranges import uniform_range
from vitfrost.methods.quantize.reparameterize import reparameterize


def drawn_layer(seed: int, channels: int = 24, outputs: int = 10) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, channels, generator=generator)
    gamma = torch.rand(channels, generator=generator) * 4 + 0.05
    beta = torch.randn(channels, generator=generator)
    weight = torch.randn(outputs, channels, generator=generator)
    return x, gamma, beta, weight, torch.randn(outputs, generator=generator)


@given(st.integers(0, 9999), st.booleans(), st.booleans())
def test_the_layer_output_is_unchanged(seed: int, strict: bool, with_bias: bool) -> None:
    x, gamma, beta, weight, bias = drawn_layer(seed)
    normed = F.layer_norm(x, (24,), gamma, beta)
    low, high = uniform_range(normed.T.contiguous(), 4)
    new = reparameterize(gamma, beta, weight, bias if with_bias else None, low, high, 4, "strict" if strict else "published")
    before = F.linear(normed, weight, bias if with_bias else None)
    after = F.linear(F.layer_norm(x, (24,), new.gamma, new.beta), new.weight, new.bias)
    assert torch.allclose(before, after, atol=1e-3, rtol=1e-4)
    assert not strict or float(new.zero_point) == round(float(new.zero_point))


@given(st.integers(0, 9999))
def test_channel_wise_codes_become_layer_wise_codes(seed: int) -> None:
    """In float64 terms: quantizing channel c with (s_c, z_c) equals quantizing the moved channel with (s~, z~), up to the shift of z."""
    x, gamma, beta, weight, bias = drawn_layer(seed)
    normed = F.layer_norm(x, (24,), gamma, beta)
    low, high = normed.amin(0), normed.amax(0)
    scale, zero = uniform_parameters(low, high, 4)
    new = reparameterize(gamma, beta, weight, bias, low, high, 4, "strict")
    moved = F.layer_norm(x, (24,), new.gamma, new.beta)
    ours = uniform_codes(moved, new.scale, new.zero_point, 4)
    assert float((ours == uniform_codes(normed, scale, zero, 4)).float().mean()) > 0.98  # float32 ties


def test_constant_channels_are_met_exactly() -> None:
    x, gamma, beta, weight, bias = drawn_layer(3)
    gamma[5], gamma[7] = 0.0, 0.0
    beta[5], beta[7] = 2.7, 0.0
    normed = F.layer_norm(x, (24,), gamma, beta)
    low, high = uniform_range(normed.T.contiguous(), 4)
    new = reparameterize(gamma, beta, weight, bias, low, high, 4, "published")
    for value in (new.gamma, new.beta, new.weight, new.bias, new.scale, new.zero_point):
        assert bool(torch.isfinite(value).all())
    moved = F.layer_norm(x, (24,), new.gamma, new.beta)
    assert torch.allclose(F.linear(normed, weight, bias), F.linear(moved, new.weight, new.bias), atol=1e-3)
    assert torch.allclose(moved[:, 5], -new.zero_point * new.scale, atol=1e-5)  # code 0, no rounding error
