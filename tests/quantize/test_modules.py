"""Quantisers at run time: the same bits whether or not a gradient is wanted, and gradients straight through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitfrost.quantize.modules import LogQuantizer, UniformQuantizer


def quantizers() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Quantisers with what they quantise, some of it out of range."""
    generator = torch.Generator().manual_seed(0)
    uniform, log = UniformQuantizer(4), LogQuantizer(4, "published")
    uniform.set_range(torch.tensor(-1.3), torch.tensor(2.1))
    log.step = torch.tensor(0.8)
    return {
        "uniform": (uniform, torch.randn(3, 2, 5, 5, generator=generator) * 2),
        "log": (log, (torch.randn(3, 2, 5, 5, generator=generator) * 4).softmax(-1)),
    }


@pytest.mark.parametrize("kind", ["uniform", "log"])
def test_values_are_the_same_bits_with_and_without_gradients(kind: str) -> None:
    quantizer, x = quantizers()[kind]
    with torch.inference_mode():
        expected = quantizer(x)
    assert not torch.equal(expected, x)
    plain, tracked = quantizer(x), quantizer(x.clone().requires_grad_())
    assert not plain.requires_grad
    assert tracked.requires_grad
    for values in (plain, tracked):
        assert torch.equal(values, expected)
    with torch.no_grad():
        assert not quantizer(x.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("kind", ["uniform", "log"])
def test_gradients_pass_unchanged_even_where_values_are_cut(kind: str) -> None:
    quantizer, x = quantizers()[kind]
    x.requires_grad_()
    arriving = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    quantizer(x).backward(arriving)
    assert x.grad is not None
    assert torch.equal(x.grad, arriving)
