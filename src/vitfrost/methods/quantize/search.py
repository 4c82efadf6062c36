"""Search of a quantizer's range by what it does to the outputs. Formulas only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizers import fake_uniform, uniform_codes, uniform_parameters, uniform_values

RangeError = Callable[[Tensor, Tensor], Tensor]
SHARES = 15
WEIGHT_SHARES = 24
STEPS = 19


def integer_parameters(low: Float[Tensor, "*groups"], high: Float[Tensor, "*groups"], bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of the range [low, high] widened so that it holds zero, which then is a level."""
    return uniform_parameters(low.clamp(max=0), high.clamp(min=0), bits)


def search_range(
    low: Float[Tensor, "*groups"], high: Float[Tensor, "*groups"], error: RangeError, rounds: int = 2
) -> tuple[Float[Tensor, "*groups"], Float[Tensor, "*groups"]]:
    """The range with the smallest `error(low, high)` (per group), from the whole range [low, high] inwards.

    First both ends shrink together, to a thirty-second at most; then each end is moved by itself, in ever smaller steps.
    """
    best = torch.full_like(low, torch.inf)
    best_low, best_high = low.clone(), high.clone()

    def consider(candidate_low: Tensor, candidate_high: Tensor) -> None:
        nonlocal best, best_low, best_high
        found = error(candidate_low, candidate_high)
        better = found < best
        best = torch.where(better, found, best)
        best_low, best_high = torch.where(better, candidate_low, best_low), torch.where(better, candidate_high, best_high)

    for share in (2 ** -torch.linspace(0, 5, SHARES)).tolist():
        consider(low * share, high * share)
    for number in range(rounds):
        step = 0.5 ** (number + 1)
        factors = [1 + step * part for part in (-1, -0.5, -0.25, 0.25, 0.5, 1)]
        start, end = best_low.clone(), best_high.clone()
        for factor in factors:
            consider(start, torch.minimum(end * factor, high.clamp(min=0)))
        start, end = best_low.clone(), best_high.clone()
        for factor in (0.0, *factors):
            consider(torch.maximum(start * factor, low.clamp(max=0)), end)
    return best_low, best_high


def input_range(
    rows: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"] | None,
    bits: int,
    importance: Float[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Range of a layer's inputs with the smallest error sum_n w_n |W (Q(x_n) - x_n)|^2 at its outputs; `importance`: w.

    Without a `weight` it is the error of the inputs themselves."""
    projection = None if weight is None else weight.T
    if weight is not None and weight.shape[0] > weight.shape[1]:  # |W d| = |R d| with W^T W = R^T R
        values, vectors = torch.linalg.eigh(weight.double().T @ weight.double())
        projection = (vectors * values.clamp_min(0).sqrt()).float()
    importance = torch.ones(len(rows)) if importance is None else importance

    def error(low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = integer_parameters(low, high, bits)
        difference = fake_uniform(rows, scale, zero_point, bits).sub_(rows)
        return importance @ (difference if projection is None else difference @ projection).square().sum(1)

    return search_range(rows.min(), rows.max(), error)


def weight_parameters(
    weight: Float[Tensor, "outputs inputs"], bits: int, importance: Float[Tensor, " inputs"] | None = None
) -> tuple[Float[Tensor, " outputs"], Float[Tensor, " outputs"]]:
    """Scale and integer zero point per output channel with the smallest squared error, inputs weighted (by their mean squares)."""
    low, high = weight.amin(1), weight.amax(1)
    importance = torch.ones(weight.shape[1]) if importance is None else importance
    best = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for share in torch.linspace(0.4, 1, WEIGHT_SHARES).tolist():
        for ends in ((1.0, 1.0), (1.0, 0.9), (0.9, 1.0)):
            scale, zero_point = integer_parameters(low * share * ends[0], high * share * ends[1], bits)
            codes = uniform_codes(weight, scale[:, None], zero_point[:, None], bits)
            error = (uniform_values(codes, scale[:, None], zero_point[:, None]) - weight).square() @ importance
            better = error < best
            best = torch.where(better, error, best)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero_point, best_zero)
    return best_scale, best_zero


def search_step(
    error: Callable[[Tensor], Float[Tensor, "heads 1 1"]], heads: int
) -> tuple[Float[Tensor, "heads 1 1"], Float[Tensor, "heads 1 1"]]:
    """Step of a log grid per head with the smallest `error(step)` among 2^-t, t from 0 to 6 (maps are at most 1), and that error."""
    best = torch.full((heads, 1, 1), torch.inf)
    found = torch.ones(heads, 1, 1)
    for power in torch.linspace(0, 6, STEPS).tolist():
        step = torch.full((heads, 1, 1), 2**-power)
        lost = error(step)
        better = lost < best
        best, found = torch.where(better, lost, best), torch.where(better, step, found)
    return found, best
