"""A quantized model with what can be trained in it: codes of weights before they are rounded, scales, biases, gains of LayerNorms.

Rounding lets gradients straight through (Bengio, Leonard and Courville 2013), so a scale gets the gradient of LSQ (arXiv 1902.08153). What
`trainable` starts with computes what the quantized model does, and `take` puts what was learned back on its grids.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...vit.kinds import has_affine_norm
from .modules import QuantizedLayer, UniformQuantizer

SMALLEST = 1e-8


def rounded(x: Tensor) -> Tensor:
    """round(x) with the gradient of x."""
    return x + (x.round() - x).detach()


class TrainableQuantizer(nn.Module):
    """A UniformQuantizer with a scale that is trained, as its logarithm; the zero point stays."""

    zero_point: Tensor

    def __init__(self, quantizer: UniformQuantizer):
        super().__init__()
        self.bits = quantizer.bits
        self.log_scale = nn.Parameter(quantizer.scale.detach().clamp_min(SMALLEST).log())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())

    def forward(self, x: Float[Tensor, "*shape"], heads: list[int] | None = None) -> Float[Tensor, "*shape"]:
        """`heads`: the places of those in `x`; None: all."""
        scale, low = self.log_scale.exp(), -self.zero_point
        if heads is not None and scale.ndim:
            scale, low = scale[heads], low[heads]
        codes = torch.minimum(torch.maximum(rounded(x / scale), low), low + (2**self.bits - 1))
        return codes * scale


class TrainableLayer(nn.Module):
    """A QuantizedLayer whose codes are real numbers until they are rounded in the forward pass."""

    zero_point: Tensor

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.bits, self.is_convolution = layer.bits, layer.is_convolution
        self.geometry: Any = layer.geometry if layer.is_convolution else ()
        self.input_quantizer = None if layer.input_quantizer is None else TrainableQuantizer(layer.input_quantizer)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        if layer.bits == 32:
            self.codes = nn.Parameter(layer.float_weight.detach().clone())
        else:
            self.codes = nn.Parameter(layer.codes.float())
            self.log_scale = nn.Parameter(layer.scale.detach().clamp_min(SMALLEST).log())
            self.register_buffer("zero_point", layer.zero_point.detach().clone())

    def weight(self) -> Tensor:
        """The dequantized weight."""
        if self.bits == 32:
            return self.codes
        shape = (-1,) + (1,) * (self.codes.ndim - 1)
        codes = rounded(self.codes.clamp(0, 2**self.bits - 1))
        return (codes - self.zero_point.view(shape)) * self.log_scale.exp().view(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_quantizer is None else self.input_quantizer(x)
        if self.is_convolution:
            return F.conv2d(x, self.weight(), self.bias, *self.geometry)
        return F.linear(x, self.weight(), self.bias)


def trainable(model: nn.Module) -> nn.Module:
    """A copy of a quantized model that can be trained; nothing else in it takes gradients than what `groups` lists."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, QuantizedLayer):
            twin.set_submodule(name, TrainableLayer(module))
    for name, module in list(twin.named_modules()):
        if isinstance(module, UniformQuantizer):
            twin.set_submodule(name, TrainableQuantizer(module))
    twin.requires_grad_(False)
    for parameters in groups(twin).values():
        for parameter in parameters:
            parameter.requires_grad_()
    return twin


def groups(twin: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What is trained, by kind: codes (in units of a level), scales (logarithms), and shifts: biases, gains of LayerNorms."""
    found: dict[str, list[nn.Parameter]] = {"codes": [], "scales": [], "shifts": []}
    for module in twin.modules():
        if isinstance(module, TrainableLayer):
            found["codes" if module.bits != 32 else "shifts"].append(module.codes)
            found["scales"] += [module.log_scale] if module.bits != 32 else []
            found["shifts"] += [] if module.bias is None else [module.bias]
        elif isinstance(module, TrainableQuantizer):
            found["scales"].append(module.log_scale)
        elif has_affine_norm(module):
            found["shifts"] += [module.weight, module.bias]  # type: ignore[list-item]
    return found


@torch.no_grad()
def take(model: nn.Module, twin: nn.Module) -> None:
    """Put what was trained into the quantized model that `twin` was made from, in place."""
    for name, module in model.named_modules():
        other = twin.get_submodule(name) if name else twin
        if isinstance(module, QuantizedLayer) and isinstance(other, TrainableLayer):
            if module.bits == 32:
                module.float_weight.data = other.codes.detach().clone()
            else:
                codes = other.codes.clamp(0, 2**module.bits - 1).round()
                module.set_codes(codes, other.log_scale.exp(), module.zero_point)
            if module.bias is not None and other.bias is not None:
                module.bias.data = other.bias.detach().clone()
        elif isinstance(module, UniformQuantizer) and isinstance(other, TrainableQuantizer):
            module.scale = other.log_scale.detach().exp()
        elif has_affine_norm(module):
            module.load_state_dict(other.state_dict())
