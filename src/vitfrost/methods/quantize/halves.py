"""The penalty of a ridge regression chosen by two halves of the rows: fitted to one, judged on the other, both ways. Formulas only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..repair.ridge import RidgeSums

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, float("inf"))


def penalty_by_halves(
    first: RidgeSums, second: RidgeSums, counts: Float[Tensor, " outputs"] | None = None, penalties: tuple[float, ...] = PENALTIES
) -> float:
    """The penalty (see RidgeSums.solve) with the smallest squared residual on the half that it was not fitted to. `counts`: what the square
    of each output counts; None: 1."""
    counts = torch.ones(first.crossed.shape[1], dtype=torch.float64) if counts is None else counts.double()
    lost = torch.zeros(len(penalties), dtype=torch.float64)
    for fitted, judged in ((first, second), (second, first)):
        values, vectors = torch.linalg.eigh(fitted.products)
        crossed = vectors.T @ fitted.crossed
        for place, penalty in enumerate(penalties):
            change = vectors @ (crossed / (values.clamp_min(0) + penalty * values.mean().clamp_min(1e-30))[:, None])
            lost[place] += _residual(judged, change, fitted, counts)
    return penalties[int(lost.argmin())]


def _residual(judged: RidgeSums, change: Tensor, fitted: RidgeSums, counts: Tensor) -> float:
    """Mean squared residual on the judged rows of the change of weights [inputs, outputs], with the fitted rows' bias."""
    within = ((judged.energy - 2 * (change * judged.crossed).sum(0) + (change * (judged.products @ change)).sum(0)) * counts).sum()
    apart = (judged.residual_mean - fitted.residual_mean) - (judged.input_mean - fitted.input_mean) @ change
    return float(within / judged.weight + (apart.square() * counts).sum())
