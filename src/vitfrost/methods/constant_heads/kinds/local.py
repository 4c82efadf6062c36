"""Local constants: a window around every query, and one number for all patches outside it."""

from __future__ import annotations

from ..constants import Shape
from .structured import Structured, taps_of

WINDOWS = (3, 5, 7, 9, 11, 15)
DEFAULT_WINDOW = 7


class Local(Structured):
    """Small kernels are applied as a convolution."""

    name = "local"
    has_window = True
    covers_all = False

    def kernel_shape(self, shape: Shape, window: int | None = None) -> tuple[int, int]:
        """Raises ValueError without a window."""
        if window is None:
            raise ValueError("a local kernel needs a window")
        most = taps_of(shape)
        return min(window, most[0]), min(window, most[1])

    def windows(self, window: int | None, shape: Shape | None, auto: bool) -> tuple[int | None, ...]:
        if window is not None or not auto or shape is None:
            return (window or DEFAULT_WINDOW,)
        return tuple(side for side in WINDOWS if side < 2 * max(shape.grid) - 1)

    def kernel(self, shape: Shape, window: int | None) -> tuple[int, int] | None:
        return self.kernel_shape(shape, window)
