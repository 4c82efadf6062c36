"""The constant map that predicts a head's outputs best from its values, held to the map that was there. Formulas only.

The mean map E[A] is the best constant where maps and values vary independently of each other, and only there. From sums over images and
channels, with values V, the outputs T that are wanted and the residual R = T - C0 V of the constant C0, the problem
min E|(C0 + D) V - T|^2 + lambda |D|^2 has the optimum D (G + lambda I) = E[R V^T] with G = E[V V^T].

Shapes: B images, W windows, F heads, N queries, M keys, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class MapCorrection:
    """What is added to the constant maps, in float64, and the mean squared residual of all heads' outputs before and after."""

    maps: Float[Tensor, "windows heads queries keys"]
    before: float
    after: float


class ValueSums:
    """Sums over images and channels: products of values, of residuals with values, and of residuals."""

    def __init__(self) -> None:
        self.images = 0
        self.products: Tensor | None = None
        self.crossed: Tensor | None = None
        self.energy = 0.0

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # see ridge
    def add(
        self, values: Float[Tensor, "images windows heads keys width"], residuals: Float[Tensor, "images windows heads queries width"]
    ) -> None:
        """Add images."""
        products = (values @ values.mT).double().sum(0)
        crossed = (residuals @ values.mT).double().sum(0)
        self.products = products if self.products is None else self.products + products
        self.crossed = crossed if self.crossed is None else self.crossed + crossed
        self.energy += float(residuals.double().square().sum())
        self.images += len(values)

    def merge(self, other: ValueSums) -> None:
        """Add the sums of other images."""
        if other.products is None or other.crossed is None:
            return
        self.products = other.products if self.products is None else self.products + other.products
        self.crossed = other.crossed if self.crossed is None else self.crossed + other.crossed
        self.energy += other.energy
        self.images += other.images

    def left(self, change: Float[Tensor, "windows heads queries keys"]) -> float:
        """The squared residual of these images after a change of the maps."""
        assert self.products is not None
        assert self.crossed is not None
        return self.energy - 2 * float((change * self.crossed).sum()) + float(((change @ self.products) * change).sum())

    def solve(self, penalty: float) -> MapCorrection:
        """The correction for lambda = `penalty` times the mean square of a value; 0 takes the least squares of least norm.

        Raises ValueError for a negative penalty, or without images.
        """
        if not penalty >= 0:
            raise ValueError(f"a penalty of {penalty} is negative")
        if self.products is None or self.crossed is None:
            raise ValueError("no images were added")
        scale = self.products.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        ridge = penalty * scale * torch.eye(self.products.shape[-1]).to(self.products)
        maps = self.crossed @ torch.linalg.pinv(self.products + ridge, hermitian=True)
        return MapCorrection(maps, self.energy / self.images, max(0.0, self.left(maps) / self.images))


def best_penalty(first: ValueSums, second: ValueSums, penalties: tuple[float, ...] = PENALTIES) -> float | None:
    """The penalty (see ValueSums.solve) with the smallest squared residual on the half that it was not fitted to; None where the maps are
    best left as they are."""
    lost = {penalty: first.left(second.solve(penalty).maps) + second.left(first.solve(penalty).maps) for penalty in penalties}
    found = min(lost, key=lost.__getitem__)
    return found if lost[found] < first.energy + second.energy else None
