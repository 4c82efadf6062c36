"""Rounding of weights that takes the inputs' second moments into account. Formulas only.

With H = E[x x^T] of a layer's inputs, a row w of weights and its values q on the grid, the error at the layer's output is
(w - q)^T H (w - q). Weights are rounded one after the other, and those behind take the error (GPTQ, arXiv 2210.17323); then single codes
move to where the error is least while all others stay, and every row's scale is the best one for its codes. Neither can make it larger.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .quantizers import uniform_codes, uniform_values
from .search import integer_parameters

COLUMNS = 64  # that are rounded before the weights behind them take their errors
DAMPING = 0.01
SHARES = 13  # of a row's whole range, which are tried
SWEEPS = 4
MOST_NUMBERS = 2**24  # of all grids that are tried at a time

Grid = tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"], Float[Tensor, " outputs"]]


class Rounding:
    """Rounds rows of weights for inputs with the second moments `products`; codes are 0 .. 2^b - 1 as floats.

    Columns are rounded in falling order of their moments; the error of each goes to those after it by the Cholesky factor of the
    inverse. `damping` times the mean moment is added to the diagonal; inputs that never move cost nothing.
    """

    def __init__(self, products: Float[Tensor, "inputs inputs"], bits: int, damping: float = DAMPING):
        moments = products.double()
        mean = moments.diagonal().mean()
        moments = moments + (damping * mean if mean > 0 else 1.0) * torch.eye(len(moments), dtype=torch.float64)
        self.bits = bits
        self.order = torch.argsort(moments.diagonal(), descending=True, stable=True)
        self.moments = moments[self.order][:, self.order]
        self.factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(self.moments)), upper=True)

    def propagated(self, weight: Float[Tensor, "outputs inputs"], scale: Tensor, zero_point: Tensor) -> Float[Tensor, "outputs inputs"]:
        """Codes on the grids with these scales and zero points, one of each for a row."""
        return self._restored(self._propagate(self._ordered(weight), scale.double(), zero_point.double())).float()

    def best(self, weight: Float[Tensor, "outputs inputs"], scale: Tensor, zero_point: Tensor) -> Grid:
        """Codes, scales and zero points: of every row those with the smallest error among the given grid and some shares of the row's
        range, then codes and scales improved in turn."""
        ordered = self._ordered(weight)
        low, high = weight.amin(1), weight.amax(1)
        shares = torch.linspace(0.45, 1.05, SHARES).tolist()
        grids = [(scale, zero_point), *(integer_parameters(low * share, high * share, self.bits) for share in shares)]
        codes, scales, zeros = self._best_of(ordered, grids)
        moved = [(scales, (zeros + step).clamp(0, 2**self.bits - 1)) for step in (0, -1, 1)]
        codes, scales, zeros = self._best_of(ordered, moved)
        for _ in range(SWEEPS):
            self._move_codes(ordered, codes, scales, zeros)
            scales = self._fit_scales(ordered, codes, scales, zeros)
        return self._restored(codes).float(), scales.float(), zeros.float()

    def error(self, weight: Float[Tensor, "outputs inputs"], values: Float[Tensor, "outputs inputs"]) -> Float[Tensor, " outputs"]:
        """(w - q)^T H (w - q) of every row, damped."""
        return self._error(self._ordered(weight), self._ordered(values))

    def _ordered(self, weight: Tensor) -> Tensor:
        return weight.double()[:, self.order]

    def _restored(self, codes: Tensor) -> Tensor:
        return codes[:, torch.argsort(self.order)]

    def _error(self, ordered: Tensor, values: Tensor) -> Tensor:
        left = ordered - values
        return ((left @ self.moments) * left).sum(1)

    def _best_of(self, ordered: Tensor, grids: list[tuple[Tensor, Tensor]]) -> Grid:
        """Codes, scale and zero point of each row: those of the grid with the smallest error, the first of equal ones. Grids stand side by
        side as further rows, as many at a time as memory has room for."""
        at_a_time = max(1, MOST_NUMBERS // ordered.numel())
        codes, scales, zeros = torch.zeros_like(ordered), torch.ones(len(ordered)).double(), torch.zeros(len(ordered)).double()
        least = torch.full_like(scales, torch.inf)
        for start in range(0, len(grids), at_a_time):
            scale, zero_point = (torch.stack(each).double() for each in zip(*grids[start : start + at_a_time], strict=True))
            rows = ordered.repeat(len(scale), 1)
            made = self._propagate(rows, scale.flatten(), zero_point.flatten())
            error = self._error(rows, uniform_values(made, scale.view(-1, 1), zero_point.view(-1, 1))).view_as(scale)
            lost, place = error.min(0)
            row = (lost < least).nonzero().flatten()
            grid = place[row]
            codes[row], least[row] = made.view(len(scale), *ordered.shape)[grid, row], lost[row]
            scales[row], zeros[row] = scale[grid, row], zero_point[grid, row]
        return codes, scales, zeros

    def _propagate(self, ordered: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        left, inputs = ordered.clone(), ordered.shape[1]
        codes = torch.empty_like(left)
        for start in range(0, inputs, COLUMNS):
            end = min(start + COLUMNS, inputs)
            errors = torch.empty(len(left), end - start, dtype=torch.float64)
            for column in range(start, end):
                codes[:, column] = uniform_codes(left[:, column], scale, zero_point, self.bits)
                error = (left[:, column] - uniform_values(codes[:, column], scale, zero_point)) / self.factor[column, column]
                errors[:, column - start] = error
                left[:, column:end] -= torch.outer(error, self.factor[column, column:end])
            left[:, end:] -= errors @ self.factor[start:end, end:]
        return codes

    def _move_codes(self, ordered: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Move every code to where the row's error is least while the others stay, one column after the other, in place."""
        slope = (ordered - uniform_values(codes, scale[:, None], zero_point[:, None])) @ self.moments
        diagonal = self.moments.diagonal()
        for start in range(0, codes.shape[1], COLUMNS):
            part = slice(start, min(start + COLUMNS, codes.shape[1]))
            before = codes[:, part].clone()
            for column in range(start, part.stop):
                step = slope[:, column] / (diagonal[column] * scale)
                moved = (codes[:, column] + step).round_().clamp_(0, 2**self.bits - 1)
                change = (moved - codes[:, column]) * scale
                codes[:, column] = moved
                slope[:, part] -= torch.outer(change, self.moments[column, part])
            slope[:, part.stop :] -= ((codes[:, part] - before) * scale[:, None]) @ self.moments[part, part.stop :]

    def _fit_scales(self, ordered: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The scale of every row with the smallest error for its codes; the former one where there is none above zero."""
        steps = codes - zero_point[:, None]
        weighted = steps @ self.moments
        norm = (weighted * steps).sum(1)
        fitted = (weighted * ordered).sum(1) / torch.where(norm > 0, norm, 1)
        return torch.where((norm > 0) & (fitted > 0), fitted, scale)
