"""Toeplitz constants: one number for every relative position on the patch grid."""

from __future__ import annotations

from ..constants import Shape
from .structured import Structured, taps_of


class Toeplitz(Structured):
    """Its kernel is larger than the grid, so the map is multiplied: a convolution would take more work, unless its taps stand apart."""

    name = "toeplitz"
    covers_all = True

    def kernel_shape(self, shape: Shape, window: int | None = None) -> tuple[int, int]:
        return taps_of(shape)

    def kernel(self, shape: Shape, window: int | None) -> tuple[int, int] | None:
        return taps_of(shape) if shape.dilation > 1 else None
