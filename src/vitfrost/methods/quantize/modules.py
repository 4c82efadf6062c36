"""Run-time modules of a quantized model: activation quantizers, the map quantizer, and layers with integer weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from ...configs.mixed import FULL
from ...vit.attention import MapAttention
from .quantizers import Levels, fake_log, fake_uniform, straight_through, uniform_codes, uniform_parameters, uniform_values
from .ranges import log_step, uniform_range


class ActivationQuantizer(nn.Module):
    """What quantizers of activations have in common: `bits`, or where heads differ `head_bits` [heads, 1, 1], and `bits` is the largest."""

    head_bits: Tensor | None

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.calibrating = False
        self.register_buffer("head_bits", None, persistent=False)  # the plan has them

    def set_bits(self, bits: Sequence[int]) -> None:
        """Give every head so many bits."""
        self.bits = max(bits)
        self.head_bits = None if len(set(bits)) == 1 else torch.tensor(bits).view(-1, 1, 1)

    @property
    def depth(self) -> int | Tensor:
        """Bits of all heads, or of each."""
        return self.bits if self.head_bits is None else self.head_bits

    def heads_by_bits(self) -> dict[int, Tensor]:
        """The places of heads that have as many bits; none where all have."""
        if self.head_bits is None:
            return {}
        flat = self.head_bits.flatten()
        return {int(bits): (flat == bits).nonzero().flatten() for bits in flat.unique()}


def of_heads(value: Any, heads: list[int] | None) -> Any:
    """What belongs to some places of a tensor [heads, 1, 1]; a number, or None for the places, leaves it whole."""
    return value if heads is None or not isinstance(value, Tensor) or not value.ndim else value[heads]


class UniformQuantizer(ActivationQuantizer):
    """Fake-quantizes an activation tensor; while `calibrating` it first takes its range from what passes.

    Scale and zero point are single numbers, or [heads, 1, 1] for a tensor [rows, heads, tokens, width]. Calibration gives heads with as
    many bits one range.
    `channel_wise` (last axis; the second where `channels_first`) only serves calibration: the ranges per channel are kept in `low` and
    `high` for the re-parameterization, after which scale and zero point are single numbers.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, channel_wise: bool = False, channels_first: bool = False):
        super().__init__(bits)
        self.channel_wise, self.channels_first = channel_wise, channels_first
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take scale and zero point from a range."""
        self.scale, self.zero_point = uniform_parameters(low, high, self.bits)

    def observe(self, x: Tensor) -> None:
        """Search the range of `x` [..., channels] or [images, channels, height, width]."""
        if self.channel_wise:
            self.low, self.high = uniform_range(x.movedim(1 if self.channels_first else -1, 0).flatten(1).contiguous(), self.bits)
            shape = (-1, 1, 1) if self.channels_first else (-1,)
            self.set_range(self.low.view(shape), self.high.view(shape))
        elif self.head_bits is not None:
            by_head = x.movedim(-3, 0)
            self.scale, self.zero_point = torch.ones(len(by_head), 1, 1), torch.zeros(len(by_head), 1, 1)
            for bits, heads in self.heads_by_bits().items():
                ends = uniform_range(by_head[heads].reshape(1, -1), bits)
                self.scale[heads], self.zero_point[heads] = (each[:, None, None] for each in uniform_parameters(*ends, bits))
        else:
            low, high = uniform_range(x.reshape(1, -1), self.bits)
            self.set_range(low[0], high[0])

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.calibrating:
            self.observe(x)
        return straight_through(fake_uniform, x, self.scale, self.zero_point, self.depth)


class LogQuantizer(ActivationQuantizer):
    """Fake-quantizes attention maps on the log-sqrt2 grid of RepQ-ViT; `step` is d, one number or [heads, 1, 1].

    `octave` [heads, 1, 1]: how many levels a factor of two has, where that is not 2 everywhere.
    """

    step: Tensor
    octave: Tensor | None

    def __init__(self, bits: int, levels: Levels):
        super().__init__(bits)
        self.levels: Levels = levels
        self.register_buffer("step", torch.ones(()))
        self.register_buffer("octave", None)

    def forward(
        self, maps: Float[Tensor, "*rows heads queries keys"], heads: list[int] | None = None
    ) -> Float[Tensor, "*rows heads queries keys"]:
        """`heads`: the places of those in `maps`; None: all."""
        if self.calibrating:
            self.step = log_step(maps, self.bits, self.levels) if self.head_bits is None else torch.ones(self.head_bits.shape)
            for bits, places in self.heads_by_bits().items():
                self.step[places] = log_step(maps.movedim(-3, 0)[places], bits, self.levels)
        octave = of_heads(self.octave, heads)
        return straight_through(fake_log, maps, of_heads(self.step, heads), of_heads(self.depth, heads), self.levels, octave)


class UniformMapQuantizer(UniformQuantizer):
    """Fake-quantizes attention maps on a uniform grid, whose scale and zero point are [heads, 1, 1]."""

    @classmethod
    def like(cls, quantizer: LogQuantizer) -> UniformMapQuantizer:
        """One with the bits of another."""
        made = cls(quantizer.bits)
        made.head_bits = quantizer.head_bits
        return made

    def forward(
        self, maps: Float[Tensor, "*rows heads queries keys"], heads: list[int] | None = None
    ) -> Float[Tensor, "*rows heads queries keys"]:
        """`heads`: the places of those in `maps`; None: all."""
        return straight_through(fake_uniform, maps, *(of_heads(each, heads) for each in (self.scale, self.zero_point, self.depth)))


def quantize_heads(attention: MapAttention, bits: Sequence[int], levels: Levels, maps: bool = True) -> None:
    """Give an attention layer untrained quantizers, with so many bits for the heads in its order; nothing where that is 32. `maps`: whether
    maps have one."""
    if FULL in bits:
        return
    attention.quantize(lambda: UniformQuantizer(bits[0]), lambda: LogQuantizer(bits[0], levels) if maps else None)
    of_logits, moving = bits[: attention.logit_heads], bits[: attention.moving_heads]
    for part, own in (("value", bits), ("query", of_logits), ("key", of_logits), ("map", moving)):
        quantizer = getattr(attention, f"{part}_quantizer")
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.set_bits(own)


class QuantizedLayer(nn.Module):
    """A linear layer or convolution with integer weights per output channel and an optional input quantizer.

    Buffers: `codes` uint8 [outputs, ...], `scale` and `zero_point` [outputs]. The dequantized weight is derived from
    them alone, so a loaded layer computes the same bits as the one that was saved.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    weight: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int, input_quantizer: UniformQuantizer | None):
        super().__init__()
        self.bits = bits
        self.input_quantizer = input_quantizer
        self.is_convolution = isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.Conv2d):
            self.geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        if bits == 32:
            self.float_weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        else:
            outputs = layer.weight.shape[0]
            self.register_buffer("codes", torch.zeros(layer.weight.shape, dtype=torch.uint8))
            self.register_buffer("scale", torch.ones(outputs))
            self.register_buffer("zero_point", torch.zeros(outputs))
            self.register_buffer("weight", torch.zeros(layer.weight.shape), persistent=False)

    def set_weight(self, weight: Float[Tensor, outputs * rest]) -> None:
        """Quantize float weights anew (range search per output channel)."""
        if self.bits == 32:
            self.float_weight.data = weight.detach().clone()
            return
        rows = weight.detach().reshape(weight.shape[0], -1)
        self.scale, self.zero_point = uniform_parameters(*uniform_range(rows, self.bits), self.bits)
        codes = uniform_codes(rows, self.scale[:, None], self.zero_point[:, None], self.bits)
        self.codes = codes.to(torch.uint8).reshape(weight.shape)
        self.restore_weight()

    def set_codes(
        self, codes: Float[Tensor, outputs * rest], scale: Float[Tensor, " outputs"], zero_point: Float[Tensor, " outputs"]
    ) -> None:
        """Take codes that were chosen elsewhere."""
        self.scale, self.zero_point = scale.float(), zero_point.float()
        self.codes = codes.to(torch.uint8)
        self.restore_weight()

    def restore_weight(self) -> None:
        """Derive the float weight from codes, scales and zero points (after loading)."""
        shape = (-1,) + (1,) * (self.codes.ndim - 1)
        self.weight = uniform_values(self.codes.float(), self.scale.view(shape), self.zero_point.view(shape))

    def float_layer(self) -> nn.Linear | nn.Conv2d:
        """An ordinary layer with the values that the codes stand for; without the input quantizer."""
        weight = self.float_weight if self.bits == 32 else self.weight
        made: nn.Linear | nn.Conv2d
        if self.is_convolution:
            stride, padding, dilation, groups = self.geometry
            sides = (weight.shape[2], weight.shape[3])
            channels, biased = weight.shape[1] * groups, self.bias is not None
            made = skip_init(nn.Conv2d, channels, len(weight), sides, stride, padding, dilation, groups, biased)
        else:
            made = skip_init(nn.Linear, weight.shape[1], len(weight), self.bias is not None)
        made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        made.bias = self.bias
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.float_weight if self.bits == 32 else self.weight
        if self.is_convolution:
            return F.conv2d(x, weight, self.bias, *self.geometry)
        return F.linear(x, weight, self.bias)
