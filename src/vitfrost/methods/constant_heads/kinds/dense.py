"""Dense constants: one number for every pair of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..constants import Shape, resized_map
from .kind import ConstantKind, Maps

if TYPE_CHECKING:
    from torch import Tensor


class Dense(ConstantKind):
    """The mean map itself, [W, N, M]; maps of any form have one."""

    name = "dense"
    needs_grid = False
    in_auto = True

    def fit(self, mean: Any, importance: Any, shape: Shape | None, window: int | None = None, allowed: Any = None) -> np.ndarray:
        return np.asarray(mean)

    def uniform(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> np.ndarray:
        return np.full(maps, 1 / maps[2])

    def parts(self, constant: Any) -> dict[str, np.ndarray]:
        return {"map": constant}

    def of_parts(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return parts["map"].astype(np.float32)

    def maps(self, parts: Mapping[str, Tensor], shape: Shape | None, allowed: Tensor | None) -> Tensor:
        return parts["map"] if allowed is None else parts["map"] * allowed

    def whole(self, constant: Any, shape: Shape | None, allowed: Any = None) -> np.ndarray:
        return np.asarray(constant)

    def stored(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> int:
        return prod(maps)

    def resized(self, constant: Any, shape: Shape, target: Shape, window: int | None) -> np.ndarray:
        return resized_map(constant, shape, target)
