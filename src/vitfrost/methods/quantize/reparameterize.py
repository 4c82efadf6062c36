"""RepQ-ViT's scale re-parameterization: from channel-wise to layer-wise activation scales, without changing the layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizers import Levels, uniform_parameters


@dataclass(frozen=True)
class Reparameterized:
    """New parameters of a LayerNorm and of the linear layer behind it, and the layer-wise scale and zero point between them."""

    gamma: Float[Tensor, channels]
    beta: Float[Tensor, channels]
    weight: Float[Tensor, "outputs channels"]
    bias: Float[Tensor, outputs]
    scale: Float[Tensor, ""]
    zero_point: Float[Tensor, ""]


def reparameterize(
    gamma: Float[Tensor, channels],
    beta: Float[Tensor, channels],
    weight: Float[Tensor, "outputs channels"],
    bias: Float[Tensor, outputs] | None,
    low: Float[Tensor, channels],
    high: Float[Tensor, channels],
    bits: int,
    levels: Levels,
) -> Reparameterized:
    """Move the variation of channel-wise scales into the LayerNorm and the next layer (RepQ-ViT, equations 4-8).

    `low`, `high`: each channel's range. With s, z per channel, target s~ = mean(s), z~ = mean(z) (rounded if strict),
    r1 = s / s~ and offset b0 = lo / r1 - lo~:  gamma' = gamma / r1, beta' = beta / r1 - b0, W' = W diag(r1), b' = b + W' b0.

    A channel that never varies has no scale of its own: it takes the target's, and its value lands exactly on code 0.
    """
    gamma, beta, weight, low, high = (tensor.double() for tensor in (gamma, beta, weight, low, high))
    bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
    constant = low == high
    scale, zero_point = uniform_parameters(low, high, bits)
    varying = ~constant if bool((~constant).any()) else torch.ones_like(constant)
    target_scale, target_zero = scale[varying].mean(), zero_point[varying].mean()
    if levels == "strict":
        target_zero = torch.round(target_zero)
    ratio = torch.where(constant, torch.ones_like(scale), scale / target_scale)
    lowest = torch.where(constant, low, -zero_point * scale)
    offset = lowest / ratio + target_zero * target_scale
    weight = weight * ratio
    return Reparameterized(
        (gamma / ratio).float(),
        (beta / ratio - offset).float(),
        weight.float(),
        (bias + weight @ offset).float(),
        target_scale.float(),
        target_zero.float(),
    )
