"""Rounding of weights with propagation of the error to weights that are not rounded yet (GPTQ, arXiv 2210.17323). Formulas only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizers import uniform_codes, uniform_values

COLUMNS = 64  # that are rounded before the weights behind them take their errors
DAMPING = 0.01


def round_with_propagation(
    weight: Float[Tensor, "outputs inputs"],
    products: Float[Tensor, "inputs inputs"],
    scale: Float[Tensor, " outputs"],
    zero_point: Float[Tensor, " outputs"],
    bits: int,
    damping: float = DAMPING,
) -> Float[Tensor, "outputs inputs"]:
    """Codes 0 .. 2^b - 1 as floats, that keep E|(Q - W) x|^2 small for inputs with the second moments `products`.

    Columns are rounded in falling order of their moments; the error of each goes to those after it by the Cholesky factor of the
    inverse. `damping` times the mean moment is added to the diagonal; inputs that never move cost nothing.
    """
    moments = products.double()
    inputs = len(moments)
    mean = moments.diagonal().mean()
    moments = moments + (damping * mean if mean > 0 else 1.0) * torch.eye(inputs, dtype=torch.float64)
    order = torch.argsort(moments.diagonal(), descending=True, stable=True)
    left = weight.double()[:, order].clone()
    moments = moments[order][:, order]
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    scales, zeros = scale.double(), zero_point.double()
    codes = torch.empty_like(left)
    for start in range(0, inputs, COLUMNS):
        end = min(start + COLUMNS, inputs)
        errors = torch.empty(len(left), end - start, dtype=torch.float64)
        for column in range(start, end):
            codes[:, column] = uniform_codes(left[:, column], scales, zeros, bits)
            error = (left[:, column] - uniform_values(codes[:, column], scales, zeros)) / factor[column, column]
            errors[:, column - start] = error
            left[:, column:end] -= torch.outer(error, factor[column, column:end])
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes[:, torch.argsort(order)].float()
