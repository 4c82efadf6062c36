"""What kinds by relative position share: a kernel on the patch grid, a scale per query, and what prefix tokens give and take."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..constants import Shape, StructuredMap, dense_of, fit, relative_positions, resized, triangles, uniform
from ..offsets import MapSums, fit_sums, values_at
from .kind import ConstantKind, Maps, Places

if TYPE_CHECKING:
    from torch import Tensor

PARTS = tuple(field.name for field in fields(StructuredMap))


def taps_of(shape: Shape) -> tuple[int, int]:
    """Height and width of a kernel with all relative positions of a grid; three taps at least where they stand apart."""
    half = [max(-(-(side - 1) // shape.dilation), shape.dilation > 1) for side in shape.grid]
    return 2 * half[0] + 1, 2 * half[1] + 1


class Structured(ConstantKind):
    """A StructuredMap, fitted by least squares. `covers_all`: its kernel has every relative position."""

    in_auto = True
    of_sums = True
    covers_all: ClassVar[bool]

    @abstractmethod
    def kernel_shape(self, shape: Shape, window: int | None = None) -> tuple[int, int]:
        """Height and width of the kernel."""

    def fit(self, mean: Any, importance: Any, shape: Shape | None, window: int | None = None, allowed: Any = None) -> StructuredMap:
        assert shape is not None
        return fit(mean, importance, shape, self.kernel_shape(shape, window), allowed)

    def fit_sums(self, sums: MapSums, shape: Shape, window: int | None = None) -> StructuredMap:
        return fit_sums(sums, shape, self.kernel_shape(shape, window))

    def at(self, constant: StructuredMap, shape: Shape | None, places: Places, allowed: Any = None) -> np.ndarray:
        assert shape is not None
        return values_at(constant, shape, *places)

    def uniform(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> StructuredMap:
        assert shape is not None
        return uniform(shape, self.kernel_shape(shape, window), maps[0] if masked else 1)

    def parts(self, constant: StructuredMap) -> dict[str, np.ndarray]:
        return {name: np.asarray(getattr(constant, name)) for name in PARTS}

    def of_parts(self, parts: Mapping[str, np.ndarray]) -> StructuredMap:
        return StructuredMap(**{**parts, "rest": float(parts["rest"])})  # type: ignore[arg-type]

    def maps(self, parts: Mapping[str, Tensor], shape: Shape | None, allowed: Tensor | None) -> Tensor:
        import torch

        assert shape is not None
        prefix, kernel = shape.prefix_tokens, parts["kernel"]
        if shape.dilation > 1:
            down, right = (torch.from_numpy(triangles(side, shape.dilation)).to(kernel) for side in kernel.shape)
            kernel = down @ (kernel - parts["rest"]) @ right.T + parts["rest"]
        groups = torch.from_numpy(relative_positions(shape.grid, tuple(kernel.shape))).to(kernel.device)  # type: ignore[arg-type]
        values = torch.cat([kernel.flatten(), parts["rest"].reshape(1)])
        patches = values[groups] * parts["row_scale"][:, :, None]
        if allowed is not None:
            patches = patches * allowed[:, prefix:, prefix:]
        columns, rows = (parts[name].expand(len(patches), *parts[name].shape) for name in ("prefix_columns", "prefix_rows"))
        return torch.cat([rows, torch.cat([columns, patches], dim=2)], dim=1)

    def whole(self, constant: StructuredMap, shape: Shape | None, allowed: Any = None) -> np.ndarray:
        assert shape is not None
        return dense_of(constant, shape, allowed)

    def resized(self, constant: StructuredMap, shape: Shape, target: Shape, window: int | None) -> StructuredMap:
        return resized(constant, shape, target, self.kernel_shape(target, window), self.covers_all)
