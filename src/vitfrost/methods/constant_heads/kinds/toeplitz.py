"""Toeplitz constants: one number for every relative position on the patch grid."""

from __future__ import annotations

from ..constants import Shape
from .structured import Structured


class Toeplitz(Structured):
    """Its kernel is larger than the grid, so the map is multiplied: a convolution would take more work."""

    name = "toeplitz"
    covers_all = True

    def kernel_shape(self, shape: Shape, window: int | None = None) -> tuple[int, int]:
        return 2 * shape.grid[0] - 1, 2 * shape.grid[1] - 1
