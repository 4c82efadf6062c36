"""What a frozen head costs: multiply-accumulates per image and bytes, by kind of constant and by how it is applied.

Shapes: W windows, N queries, M keys, D head width, P prefix tokens, k the side of a local window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .constants import Shape
from .kinds import KINDS

# "triton" is never chosen here but by measurement on a GPU (timing/constant_forms.py); its arithmetic is the convolution's.
Form = Literal["matmul", "convolution", "triton"]
BYTES_PER_NUMBER = 4
# A depthwise convolution reaches about this share of a matrix product's rate on CPUs: 0.12 to 0.30 with 7 x 7 kernels
# (docs/results/freezing.md).
CONVOLUTION_EFFICIENCY = 1 / 5
# What reading a byte of a constant costs beside arithmetic at batch 1.
MACS_PER_BYTE = 4


@dataclass(frozen=True)
class HeadCost:
    """Multiply-accumulates per image, and bytes of what is stored."""

    macs: int
    stored_bytes: int

    @property
    def total(self) -> float:
        """Both in multiply-accumulates, to compare kinds."""
        return float(self.macs + MACS_PER_BYTE * self.stored_bytes)


def matmul_macs(windows: int, queries: int, keys: int, head_dim: int) -> int:
    """A constant N x M matrix times the values."""
    return windows * queries * keys * head_dim


def convolution_macs(shape: Shape, head_dim: int, kernel: tuple[int, int]) -> int:
    """Kernel, rest (one sum, one addition and one scale per patch), prefix rows and columns; and the smoothing before a kernel whose taps
    stand apart, down and then right, over as many patches more on every side as it spreads."""
    patches, prefix = shape.patches, shape.prefix_tokens
    around = 2 * (shape.dilation - 1)
    height, width = shape.grid[0] + around, shape.grid[1] + around
    smoothing = (around + 1) * (height * shape.grid[1] + height * width) if around else 0
    return head_dim * (patches * kernel[0] * kernel[1] + smoothing + 2 * patches + prefix * shape.tokens + patches * prefix)


def best_form(shape: Shape | None, head_dim: int, kernels: list[tuple[int, int]]) -> Form:
    """How a layer's frozen heads are applied together: as one convolution where all have kernels small enough to be faster so."""
    if shape is None or not kernels:
        return "matmul"
    largest = (max(height for height, _ in kernels), max(width for _, width in kernels))
    as_convolution = convolution_macs(shape, head_dim, largest) / CONVOLUTION_EFFICIENCY
    return "convolution" if as_convolution < matmul_macs(1, shape.tokens, shape.tokens, head_dim) else "matmul"


def constant_macs(shape: Shape | None, maps: tuple[int, int, int, int], head_dim: int, kinds: Sequence[tuple[str, int | None]]) -> int:
    """Multiply-accumulates per image of applying a layer's constant heads together, in the form that their module takes."""
    windows, _, queries, keys = maps
    kernels = kernels_together(shape, windows, kinds)
    if shape is not None and best_form(shape, head_dim, kernels) == "convolution":
        largest = (max(height for height, _ in kernels), max(width for _, width in kernels))
        return len(kinds) * convolution_macs(shape, head_dim, largest)
    return len(kinds) * matmul_macs(windows, queries, keys, head_dim)


def kernels_together(shape: Shape | None, windows: int, kinds: Sequence[tuple[str, int | None]]) -> list[tuple[int, int]]:
    """Kernels of a layer's heads where one convolution could apply them all, else none."""
    if shape is None or windows > 1:
        return []
    kernels = [KINDS[kind].kernel(shape, window) for kind, window in kinds]
    return [kernel for kernel in kernels if kernel is not None] if None not in kernels else []


def head_cost(kind: str, shape: Shape | None, maps: tuple[int, int, int], head_dim: int, window: int | None, masked: bool) -> HeadCost:
    """Cost of one frozen head of maps (windows, queries, keys), applied in the form that is faster for its kind."""
    stored = BYTES_PER_NUMBER * KINDS[kind].stored(maps, shape, window, masked)
    kernels = [] if masked else kernels_together(shape, maps[0], [(kind, window)])
    if shape is not None and best_form(shape, head_dim, kernels) == "convolution":
        return HeadCost(convolution_macs(shape, head_dim, kernels[0]), stored)
    return HeadCost(matmul_macs(*maps, head_dim), stored)
