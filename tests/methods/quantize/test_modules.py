"""Quantizers at run time: the same bits whether or not a gradient is wanted, and gradients straight through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vitfrost.methods.quantize.modules import LogQuantizer, QuantizedLayer, UniformMapQuantizer, UniformQuantizer
from vitfrost.methods.quantize.trainable import TrainableMaps, TrainableQuantizer


def quantizers() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Quantizers with what they quantize, some of it out of range."""
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


@pytest.mark.parametrize("kind", ["uniform", "log"])
@pytest.mark.parametrize("trained", [False, True])
def test_heads_of_mixed_bits_are_quantized_as_each_alone(kind: str, trained: bool) -> None:
    bits, generator = (4, 8, 2), torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 5, 5, generator=generator)
    x = x if kind == "uniform" else (4 * x).softmax(-1)
    alone: list[Any] = [UniformQuantizer(each) if kind == "uniform" else LogQuantizer(each, "strict") for each in bits]
    made: Any = UniformMapQuantizer(4) if kind == "uniform" else LogQuantizer(4, "strict")
    made.set_bits(bits)
    for quantizer, own in ((made, x), *((each, x[:, head]) for head, each in enumerate(alone))):
        if kind == "uniform":
            quantizer.observe(own)
        else:
            quantizer.calibrating = True
            quantizer(own)
            quantizer.calibrating = False
    wrap: Any = (TrainableQuantizer if kind == "uniform" else TrainableMaps) if trained else lambda each: each
    wanted = torch.stack([wrap(each)(x[:, head]) for head, each in enumerate(alone)], 1)
    assert torch.equal(wrap(made)(x), wanted)
    assert torch.equal(wrap(made)(x[:, 1:], [1, 2]), wanted[:, 1:])


LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(6, 5),
    "1 x 1": nn.Conv2d(6, 5, 1, bias=False),
    "strided": nn.Conv2d(6, 5, 4, stride=4),
    "overlapping": nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
}


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_a_quantized_layer_is_the_layer_with_other_weights(kind: str) -> None:
    """Geometry and bias stay; every output channel's weights are within half a step of a grid of 2^b values of its own."""
    layer = LAYERS[kind]
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)))
    layer.weight.mul_(10.0 ** torch.arange(len(layer.weight)).view(-1, *[1] * (layer.weight.ndim - 1)))  # scales of 1 to 1e8
    made = QuantizedLayer(layer, 8, None)
    made.set_weight(layer.weight)
    assert made.codes.shape == layer.weight.shape
    worst = (made.weight - layer.weight).abs().flatten(1).amax(1)
    assert bool((worst <= 1.01 * made.scale).all())  # half a step, and what rounding the zero point moves the ends
    x = torch.randn(2, *((8, 6) if kind == "linear" else (6, 8, 8)), generator=torch.Generator().manual_seed(4))
    layer.weight.copy_(made.weight)
    assert torch.equal(made(x), layer(x))
    assert torch.equal(QuantizedLayer(layer, 32, None)(x), layer(x))
