"""Quantizer formulas of RepQ-ViT, free of state.

Uniform asymmetric: s = (hi - lo) / (2^b - 1), z = round(-lo / s), q = clamp(round(x / s) + z, 0, 2^b - 1), x^ = (q - z) s.
Log-sqrt2 for attention maps: k = round(-2 log2(x / d)), value 2^(-k/2) d; small values become exactly zero.
Log with r levels to a factor of two (AdaLog, arXiv 2407.12951): k = round(-r log2(x / d)), value 2^(-k/r) d in multiples of 2^-14 d.

Levels: "published" keeps the behavior of the authors' code, in which a b-bit log quantizer has 2^b non-zero values and a
separate zero, and in which zero points need not be integers; "strict" keeps to 2^b values, one of them zero.

Where `bits` may be a tensor, it is whole numbers [heads, 1, 1] beside scales of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

Levels = Literal["published", "strict"]
LEVEL_UNITS = 2**14  # of a step, what levels of other bases than sqrt2 are multiples of


def uniform_parameters(low: Float[Tensor, "*groups"], high: Float[Tensor, "*groups"], bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the range [low, high], per group.

    A constant group (low == high) gets the range that reaches from zero to its value, so that it is met exactly.
    """
    constant = low == high
    low = torch.where(constant, low.clamp(max=0), low)
    high = torch.where(constant, high.clamp(min=0), high)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale)


def uniform_codes(x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor, bits: int) -> Float[Tensor, "*shape"]:
    """Integer codes 0 .. 2^b - 1 as floats (for an integer zero point)."""
    return torch.clamp(torch.round(x / scale) + zero_point, 0, 2**bits - 1)


def uniform_values(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values that codes stand for."""
    return (codes - zero_point) * scale


def fake_uniform(x: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor, bits: int | Tensor) -> Float[Tensor, "*shape"]:
    """Quantize and dequantize in one go: clamp(round(x/s), -z, 2^b - 1 - z) s, one temporary.

    With a non-integer zero point this has 2^b + 1 values, as in the authors' code.
    """
    steps = torch.div(x, scale).round_()
    single = zero_point.ndim == 0 and zero_point.device.type == "cpu"
    if single and isinstance(bits, int):  # clamping to two numbers takes a fourth of the time of tensors
        lowest = -float(zero_point)
        return steps.clamp_(lowest, 2**bits - 1 + lowest).mul_(scale)
    return steps.clamp_(-zero_point, 2**bits - 1 - zero_point).mul_(scale)


@overload
def zero_code(bits: int, levels: Levels) -> int: ...
@overload
def zero_code(bits: Tensor, levels: Levels) -> Tensor: ...
def zero_code(bits: int | Tensor, levels: Levels) -> int | Tensor:
    """The code that stands for exactly zero: 2^b (a 2^b + 1st value) as published, 2^b - 1 if strict."""
    return 2**bits if levels == "published" else 2**bits - 1


def log_codes(x: Float[Tensor, "*shape"], step: Tensor | float, bits: int, levels: Levels) -> Int[Tensor, "*shape"]:
    """Codes k = round(-2 log2(x / d)) clamped below at 0; everything beyond the last level gets the zero code."""
    codes = torch.log2(x / step).mul_(-2).round_().clamp_(0, zero_code(bits, levels))
    return codes.to(torch.int16)


def log_values(codes: Int[Tensor, "*shape"], step: Tensor | float, bits: int, levels: Levels) -> Float[Tensor, "*shape"]:
    """2^(-k/2) d, and 0 for the zero code."""
    values = torch.exp2(codes.float() * -0.5) * step
    return torch.where(codes >= zero_code(bits, levels), torch.zeros_like(values), values)


def fake_log(
    x: Float[Tensor, "*shape"], step: Tensor, bits: int | Tensor, levels: Levels, octave: Tensor | None = None
) -> Float[Tensor, "*shape"]:
    """Quantize and dequantize attention maps on the log-sqrt2 grid with step d; `octave`: on grids of so many levels to a factor of two."""
    if octave is not None:
        codes = torch.div(x, step).log2_().mul_(-octave).round_().clamp_(min=0)
        zero = codes > zero_code(bits, levels) - 0.5
        return torch.exp2(codes.div_(-octave)).mul_(LEVEL_UNITS).round_().mul_(step / LEVEL_UNITS).masked_fill_(zero, 0.0)
    exponent = torch.div(x, step).log2_().mul_(2).round_().clamp_(max=0)  # -k
    if step.ndim:  # a step per head
        exponent.masked_fill_(exponent < 0.5 - zero_code(bits, levels), -torch.inf)
        return torch.exp2(exponent.mul_(0.5)).mul_(step)
    values = torch.exp2(exponent.mul_(0.5)).mul_(step)
    # exp2 of the first level that is zero, so that the comparison does not need the codes
    threshold = step * 2 ** (-(zero_code(bits, levels) - 0.5) / 2)
    return torch.threshold_(values, float(threshold), 0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, formula: Callable[..., Tensor], parameters: tuple[Any, ...]) -> Tensor:
        return formula(x, *parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def straight_through(formula: Callable[..., Tensor], x: Float[Tensor, "*shape"], *parameters: Any) -> Float[Tensor, "*shape"]:
    """formula(x, *parameters), whose gradient by x is taken to be one: the straight-through estimator of Bengio, Leonard and
    Courville 2013 (arXiv 1308.3432), since that of a step function is zero. Without a gradient to take it is the plain call.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, formula, parameters)
    return formula(x, *parameters)
