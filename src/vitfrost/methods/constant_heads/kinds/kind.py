"""What a kind of constant is, and which ones there are.

Shapes: W windows (1 where all windows share a constant), N queries, M keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from ..constants import Shape
from ..offsets import MapSums

if TYPE_CHECKING:
    from torch import Tensor

Maps = tuple[int, int, int]
Places = tuple[np.ndarray, np.ndarray, np.ndarray]


class ConstantKind(ABC):
    """One kind of constant map. A constant is an object of the kind's own; its numbers are named arrays, which the run-time module has as
    parameters.

    `name`: as plans and `--constants` have it. `needs_grid`: queries and keys have to lie on one patch grid. `in_auto`: `--constants auto`
    may take it. `has_window`: a head's line says the side of its window. `of_sums`: sums by relative position are enough to fit it.
    """

    name: ClassVar[str]
    needs_grid: ClassVar[bool] = True
    in_auto: ClassVar[bool] = False
    has_window: ClassVar[bool] = False
    of_sums: ClassVar[bool] = False

    @abstractmethod
    def fit(
        self,
        mean: Float[np.ndarray, "windows queries keys"],
        importance: Float[np.ndarray, "windows keys"],
        shape: Shape | None,
        window: int | None = None,
        allowed: Bool[np.ndarray, "windows queries keys"] | None = None,
    ) -> Any:
        """The constant nearest to a head's mean maps, pairs weighted by the `importance` of their key (mean squared norm of its value at
        the layer's output). `allowed`: the pairs that a shift mask leaves (None: all)."""

    def fit_sums(self, sums: MapSums, shape: Shape, window: int | None = None) -> Any:
        """The constant that goes best with sums of a head's mean maps, where these maps are not held."""
        raise NotImplementedError(f"{self.name} constants are fitted to whole maps")

    def at(
        self, constant: Any, shape: Shape | None, places: Places, allowed: Bool[np.ndarray, "windows queries keys"] | None = None
    ) -> Float[np.ndarray, " pairs"]:
        """The values of the map at some pairs: window, query and key of each."""
        whole = self.whole(constant, shape, allowed)
        return whole[places[0] if len(whole) > 1 else 0, places[1], places[2]]

    @abstractmethod
    def uniform(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> Any:
        """The constant that looks at all keys alike, for maps of [W, N, M]."""

    @abstractmethod
    def parts(self, constant: Any) -> dict[str, np.ndarray]:
        """The numbers of a constant, by the name of the parameter."""

    @abstractmethod
    def of_parts(self, parts: Mapping[str, np.ndarray]) -> Any:
        """The constant with these numbers."""

    @abstractmethod
    def maps(
        self, parts: Mapping[str, Tensor], shape: Shape | None, allowed: Bool[Tensor, "windows queries keys"] | None
    ) -> Float[Tensor, "windows queries keys"]:
        """The whole map, differentiable by the parts."""

    def whole(
        self, constant: Any, shape: Shape | None, allowed: Bool[np.ndarray, "windows queries keys"] | None = None
    ) -> Float[np.ndarray, "windows queries keys"]:
        """The whole map that a constant stands for."""
        import torch

        parts = {name: torch.as_tensor(part) for name, part in self.parts(constant).items()}
        made: np.ndarray = self.maps(parts, shape, None if allowed is None else torch.as_tensor(allowed)).numpy()
        return made

    def stored(self, maps: Maps, shape: Shape | None, window: int | None = None, masked: bool = False) -> int:
        """How many numbers an artifact has of one head."""
        return sum(part.size for part in self.parts(self.uniform(maps, shape, window, masked)).values())

    def windows(self, window: int | None, shape: Shape | None, auto: bool) -> tuple[int | None, ...]:
        """Which sides are tried where a person gives `window` (None: no side), for a kind that has one; `auto`: any may be taken."""
        return (None,)

    def kernel(self, shape: Shape, window: int | None) -> tuple[int, int] | None:
        """Height and width of a kernel that a convolution may apply; None where maps are multiplied."""
        return None

    def resized(self, constant: Any, shape: Shape, target: Shape, window: int | None) -> Any:
        """The constant for another patch grid; `window`: its side there. Raises ValueError where it belongs to its image size."""
        raise ValueError(f"{self.name} constants belong to their image size")


KINDS: dict[str, ConstantKind] = {}


def register(kind: ConstantKind) -> None:
    """Make a kind known by its name to plans, flags, recipes and artifacts. Raises ValueError for a name that is taken."""
    if kind.name in KINDS or kind.name == "auto":
        raise ValueError(f"there is a kind of constant named {kind.name} already")
    KINDS[kind.name] = kind
