"""A quantized model with what can be trained in it: codes of weights before they are rounded, scales, biases, gains of LayerNorms, and
constants of frozen heads.

Rounding lets gradients straight through (Bengio, Leonard and Courville 2013), so a scale gets the gradient of LSQ (arXiv 1902.08153). What
`trainable` starts with computes what the quantized model does, and `take` puts what was learned back on its grids.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...vit.kinds import has_affine_norm
from ..constant_heads.module import ConstantHeads, HeadConstant
from .modules import LogQuantizer, QuantizedLayer, UniformQuantizer, of_heads
from .quantizers import zero_code

SMALLEST = 1e-8


def _planes(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Views of a tensor by its groups along the third last axis; the tensor itself where there is one group."""
    return (x,) if groups == 1 else x.unbind(-3)


class _FakeQuantize(torch.autograd.Function):
    """clamp(round(x / s), low, high) s, with few passes over memory, in the type of x.

    The gradient by x is one between the ends; that by log s is the sum of g (y - x) between the ends, and of g y beyond them (LSQ).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, low: Tensor, steps: int | Tensor) -> Tensor:
        scales = log_scale.exp().flatten().tolist()
        lows, counts = (torch.as_tensor(each).expand(log_scale.shape).flatten().tolist() for each in (low, steps))
        made = torch.empty_like(x, memory_format=torch.contiguous_format)
        ctx.ends = []
        for scale, least, count, own, out in zip(scales, lows, counts, _planes(x, len(scales)), _planes(made, len(scales)), strict=True):
            torch.mul(own, 1 / scale if scale else math.inf, out=out)  # a rate that is too large ends in scales of zero
            out.round_().clamp_(least, least + count).mul_(scale)
            ctx.ends.append((scale * (least - 0.5), scale * (least + count + 0.5)))
        ctx.save_for_backward(x, made)
        ctx.shape = log_scale.shape
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, made = ctx.saved_tensors
        count, by_x, by_scale = len(ctx.ends), [], []
        planes = (_planes(each, count) for each in (gradients[0], x, made))
        for ends, gradient, own, out in zip(ctx.ends, *planes, strict=True):
            inside = torch.ops.aten.hardtanh_backward(gradient, own, *ends)
            by_x.append(inside)
            by_scale.append((gradient * out).addcmul_(inside, own, value=-1).sum(-1).sum(dtype=torch.float32))
        return by_x[0] if count == 1 else torch.stack(by_x, -3), torch.stack(by_scale).view(ctx.shape), None, None


class _FakeLog(torch.autograd.Function):
    """Maps on the log-sqrt2 grid, as fake_log gives them to the last bits; the gradient is one.

    round(2 log2(x / d)) is the exponent of the number sqrt2 (x / d)^2, so no logarithm is taken.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, steps: Tensor, last: int | Tensor) -> Tensor:
        made = maps * maps
        made.mul_(2**0.5 / steps.square()).clamp_(max=1)
        made.view(torch.int32).bitwise_and_(0x7F800000)
        if isinstance(last, Tensor):
            made.masked_fill_(made <= 2.0 ** (0.5 - last), 0.0)
        else:
            made = F.threshold(made, 2.0 ** (0.5 - last), 0.0, inplace=True)
        return made.sqrt_().mul_(steps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Dequantized(torch.autograd.Function):
    """(clamp(round(codes), 0, most) - z) s by row, from codes that are real numbers."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, log_scale: Tensor, zero_point: Tensor, most: int) -> Tensor:
        shape = (-1,) + (1,) * (codes.ndim - 1)
        scale = log_scale.exp().view(shape)
        made = codes.clamp(0, most).round_().sub_(zero_point.view(shape)).mul_(scale)
        ctx.save_for_backward(codes, scale, made)
        ctx.most = most
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        codes, scale, made = ctx.saved_tensors
        by_codes = torch.ops.aten.hardtanh_backward(gradients[0], codes, -0.5, ctx.most + 0.5).mul_(scale)
        return by_codes, (gradients[0] * made).flatten(1).sum(1), None, None


def reduced(x: Tensor) -> Tensor:
    """x in the type of the products: bfloat16 under autocast."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


class TrainableQuantizer(nn.Module):
    """A UniformQuantizer with a scale that is trained, as its logarithm; the zero point stays."""

    zero_point: Tensor

    def __init__(self, quantizer: UniformQuantizer):
        super().__init__()
        self.depth = quantizer.depth
        self.log_scale = nn.Parameter(quantizer.scale.detach().clamp_min(SMALLEST).log())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())

    def forward(self, x: Float[Tensor, "*shape"], heads: list[int] | None = None) -> Float[Tensor, "*shape"]:
        """`heads`: the places of those in `x`; None: all."""
        log_scale, zero_point, depth = (of_heads(each, heads) for each in (self.log_scale, self.zero_point, self.depth))
        made: Tensor = _FakeQuantize.apply(reduced(x), log_scale, -zero_point, 2**depth - 1)
        return made


class TrainableMaps(nn.Module):
    """A LogQuantizer that lets gradients through; its steps stay."""

    step: Tensor

    def __init__(self, quantizer: LogQuantizer):
        super().__init__()
        self.last: Any = zero_code(quantizer.depth, quantizer.levels)
        self.register_buffer("step", quantizer.step.detach().clone())
        self.quantizer = None if quantizer.octave is None else quantizer

    def forward(self, maps: Float[Tensor, "*shape"], heads: list[int] | None = None) -> Float[Tensor, "*shape"]:
        """`heads`: the places of those in `maps`; None: all."""
        if self.quantizer is not None:
            return reduced(self.quantizer(maps.float(), heads))
        made: Tensor = _FakeLog.apply(maps.float(), of_heads(self.step, heads), of_heads(self.last, heads))
        return reduced(made)


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
        made: Tensor = _Dequantized.apply(self.codes, self.log_scale, self.zero_point, 2**self.bits - 1)
        return made

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
        elif isinstance(module, LogQuantizer):
            twin.set_submodule(name, TrainableMaps(module))
    for module in twin.modules():
        if isinstance(module, ConstantHeads):
            module.train()  # it folds its constants anew each time, with gradients
    twin.requires_grad_(False)
    for parameters in groups(twin).values():
        for parameter in parameters:
            parameter.requires_grad_()
    return twin


def groups(twin: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What is trained, by kind: codes (in units of a level), scales (logarithms), shifts (biases, gains of LayerNorms), and constants of
    frozen heads."""
    found: dict[str, list[nn.Parameter]] = {"codes": [], "scales": [], "shifts": [], "constants": []}
    for module in twin.modules():
        if isinstance(module, TrainableLayer):
            found["codes" if module.bits != 32 else "shifts"].append(module.codes)
            found["scales"] += [module.log_scale] if module.bits != 32 else []
            found["shifts"] += [] if module.bias is None else [module.bias]
        elif isinstance(module, TrainableQuantizer):
            found["scales"].append(module.log_scale)
        elif isinstance(module, HeadConstant):
            found["constants"] += list(module.parameters())
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
        elif has_affine_norm(module) or isinstance(module, HeadConstant):
            module.load_state_dict(other.state_dict())
