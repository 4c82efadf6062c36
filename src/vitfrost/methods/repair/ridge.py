"""Ridge regression from sums over rows, held to the weights that were there. Formulas only.

Shapes: i inputs, o outputs. With r = t - (W0 a + b0), what a layer's targets t leave of its outputs, the problem
min E w |W a + b - t|^2 + lambda |W - W0|^2 is that of the changes D = W - W0 and d = b - b0: min E w |D a + d - r|^2 + lambda |D|^2.
The bias is free, so that the optimum has d = E[r] - D E[a] and D (C + lambda I) = X with the centered covariances C of inputs, and X of
residuals with inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 8192


@dataclass(frozen=True)
class Correction:
    """What is added to a layer's weight and bias, in float64, and the mean squared residual (summed over outputs) before and after."""

    weight: Float[Tensor, "outputs inputs"]
    bias: Float[Tensor, " outputs"]
    before: float
    after: float


class RidgeSums:
    """Weighted sums over rows (a, r): how many, their means, and products of what is left of them without their means.

    Products are in float32 (float64 for rows in float64), one chunk of rows at a time, each about its own means; chunks and parts are
    joined in float64 (Chan, Golub & LeVeque 1979), so a large mean does not drown the rest.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None):
        place = {"dtype": torch.float64, "device": device}
        self.weight = 0.0
        self.input_mean = torch.zeros(inputs, **place)  # type: ignore[arg-type]
        self.residual_mean = torch.zeros(outputs, **place)  # type: ignore[arg-type]
        self.products = torch.zeros(inputs, inputs, **place)  # type: ignore[arg-type]
        self.crossed = torch.zeros(inputs, outputs, **place)  # type: ignore[arg-type]
        self.energy = torch.zeros(outputs, **place)  # type: ignore[arg-type]

    @torch.no_grad()
    def add(
        self,
        inputs: Float[Tensor, "rows inputs"],
        residuals: Float[Tensor, "rows outputs"],
        weights: Float[Tensor, " rows"] | None = None,
    ) -> None:
        """Add rows; `weights` (not negative) tell what each counts."""
        for start in range(0, len(inputs), CHUNK):
            part = slice(start, start + CHUNK)
            self.merge(_sums_of(inputs[part], residuals[part], None if weights is None else weights[part]))

    def merge(self, other: RidgeSums) -> None:
        """Add the sums of other rows."""
        total = self.weight + other.weight
        if not other.weight:
            return
        share = other.weight / total
        step_in, step_out = other.input_mean - self.input_mean, other.residual_mean - self.residual_mean
        between = self.weight * share
        self.products += other.products + between * torch.outer(step_in, step_in)
        self.crossed += other.crossed + between * torch.outer(step_in, step_out)
        self.energy += other.energy + between * step_out.square()
        self.input_mean = self.input_mean + share * step_in
        self.residual_mean = self.residual_mean + share * step_out
        self.weight = total

    def solve(self, penalty: float) -> Correction:
        """The correction for lambda = `penalty` times the mean variance of an input; 0 takes the least squares of least norm.

        An infinite penalty leaves the weights and moves the bias only. Raises ValueError for a negative penalty, or without rows.
        """
        if not penalty >= 0:
            raise ValueError(f"a penalty of {penalty} is negative")
        if not self.weight:
            raise ValueError("no rows were added")
        weight = torch.zeros_like(self.crossed).T
        if penalty != float("inf"):
            # sums, not means: both sides times the weight of all rows
            ridge = penalty * self.products.diagonal().mean() * torch.eye(len(self.products)).to(self.products)
            weight = (torch.linalg.pinv(self.products + ridge, hermitian=True) @ self.crossed).T
        bias = self.residual_mean - weight @ self.input_mean
        left = self.energy - 2 * (weight * self.crossed.T).sum(1) + ((weight @ self.products) * weight).sum(1)
        before = self.energy / self.weight + self.residual_mean.square()
        return Correction(weight, bias, float(before.sum()), max(0.0, float(left.sum()) / self.weight))


@torch.autocast("cpu", enabled=False)  # who repairs may compute the layers in fewer bits, but not the sums
def _sums_of(inputs: Tensor, residuals: Tensor, weights: Tensor | None) -> RidgeSums:
    kind = torch.promote_types(inputs.dtype, torch.float32)
    inputs, residuals = inputs.to(kind), residuals.to(kind)
    made = RidgeSums(inputs.shape[1], residuals.shape[1], inputs.device)
    rows = torch.ones(len(inputs), dtype=kind, device=inputs.device) if weights is None else weights.to(kind)
    made.weight = float(rows.double().sum())
    if not made.weight:
        return made
    made.input_mean = (rows.double() @ inputs.double()) / made.weight
    made.residual_mean = (rows.double() @ residuals.double()) / made.weight
    root = rows.sqrt()[:, None]
    inputs, residuals = root * (inputs - made.input_mean.to(kind)), root * (residuals - made.residual_mean.to(kind))
    made.products, made.crossed = (inputs.T @ inputs).double(), (inputs.T @ residuals).double()
    made.energy = residuals.double().square().sum(0)
    return made
