"""Range search of RepQ-ViT: quantiles (1-p, p) for three p; the candidate with the smallest squared error wins."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizers import Levels, fake_log, fake_uniform, uniform_parameters

PERCENTILES = (0.999, 0.9999, 0.99999)


def _at_rank(ordered: Float[Tensor, "groups k"], rank: float) -> Float[Tensor, "groups 1"]:
    """Linear interpolation between order statistics, as torch.quantile does it."""
    below = math.floor(rank)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below : below + 1], ordered[:, above : above + 1], rank - below)


def tail_quantiles(x: Float[Tensor, "groups n"], percentiles: tuple[float, ...] = PERCENTILES) -> tuple[Tensor, Tensor]:
    """Quantiles 1-p and p of each group for every p, each of shape [percentiles, groups].

    Only the tails are sorted, so tensors of any size work (torch.quantile refuses more than 16 M elements).
    """
    count = x.shape[1]
    tail = min(count, math.ceil((1 - min(percentiles)) * (count - 1)) + 2)
    top = torch.topk(x, tail, dim=1, largest=True, sorted=True).values
    bottom = torch.topk(x, tail, dim=1, largest=False, sorted=True).values
    ranks = [(1 - p) * (count - 1) for p in percentiles]
    low = torch.stack([_at_rank(bottom, rank)[:, 0] for rank in ranks])
    high = torch.stack([_at_rank(top, rank)[:, 0] for rank in ranks])
    return low, high


def uniform_range(x: Float[Tensor, "groups n"], bits: int) -> tuple[Float[Tensor, groups], Float[Tensor, groups]]:
    """The range [low, high] of each group whose b-bit quantization has the smallest mean squared error."""
    lows, highs = tail_quantiles(x)
    best_error = torch.full_like(lows[0], math.inf)
    best_low, best_high = lows[0].clone(), highs[0].clone()
    for low, high in zip(lows, highs, strict=True):
        scale, zero_point = uniform_parameters(low, high, bits)
        error = fake_uniform(x, scale[:, None], zero_point[:, None], bits).sub_(x).square_().mean(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
    return best_low, best_high


def log_step(maps: Float[Tensor, "*shape"], bits: int, levels: Levels) -> Float[Tensor, ""]:
    """Step d of the log-sqrt2 quantizer: the upper quantile of the maps with the smallest mean squared error."""
    flat = maps.reshape(1, -1)
    best_error, best = math.inf, flat.max()
    for high in tail_quantiles(flat)[1][:, 0]:
        if high <= 0:
            continue
        error = float(fake_log(flat, high, bits, levels).sub_(flat).square_().mean())
        if error < best_error:
            best_error, best = error, high
    return best.clone() if float(best) > 0 else torch.ones_like(best)
