"""Sums over the maps of whole heads: by relative position where queries and keys lie on one patch grid, else of every weight.

A map is summed up in float64 image by image, then rounded once to integers, so sums depend neither on the order nor on the grouping of
the images, and parts merge exactly. Nothing of the size of a map is kept where there is a grid.

Shapes: W windows, H heads, N queries, M keys, P prefix tokens, gh x gw the patch grid.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Int64

from ..errors import VitfrostError
from ..methods.constant_heads.constants import Shape
from .jit import jit

MASS_SCALE = 2.0**26  # of sums of weights; 2^19 images of 2^16 queries fit
VALUE_SCALE = 2.0**20  # of what has value norms in it, as everywhere
LARGEST = 2.0**62

Sums = dict[str, Int64[np.ndarray, "..."]]


@jit
def _add_offsets(maps: Any, norms: Any, prefix: Any, height: Any, width: Any, mass: Any, valued: Any) -> Any:
    """Add A and A ||W_O v||^2 of one image's maps [windows, tokens, tokens] by relative position, [2 height - 1, 2 width - 1] each.

    Returns True where a weight is not in [0, 1], rounding aside.
    """
    bad = False
    for window in range(maps.shape[0]):
        for query in range(height * width):
            row = maps[window, prefix + query]
            top, left = height - 1 - query // width, width - 1 - query % width
            for down in range(height):
                keys = row[prefix + down * width : prefix + (down + 1) * width]
                weights = norms[window, prefix + down * width : prefix + (down + 1) * width]
                masses = mass[top + down, left : left + width]
                values = valued[top + down, left : left + width]
                for right in range(width):
                    weight = np.float64(keys[right])
                    bad |= not (weight >= 0.0 and weight <= 1.001)
                    masses[right] += weight
                    values[right] += weight * weights[right]
    return bad


class HeadSums:
    """The sums of one site. `shape` is None where queries and keys lie on no grid."""

    def __init__(self, name: str, maps_shape: tuple[int, int, int, int], shape: Shape | None):
        self.name, self.maps_shape, self.shape = name, maps_shape, shape
        self.sums: Sums = {part: np.zeros(size, np.int64) for part, size in sums_shapes(maps_shape, shape).items()}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.sums.values())

    def add(self, head: int, maps: Float32[np.ndarray, "windows queries keys"], norms: Float32[np.ndarray, "windows keys"]) -> None:
        """Add one image's maps of a head, and ||W_O v||^2 of its values. Raises VitfrostError for what are no attention weights."""
        if not np.isfinite(norms).all():
            raise VitfrostError(f"cannot calibrate: site {self.name} has values that are not finite")
        self._add("value_sums", (slice(None), head), norms.astype(np.float64) * VALUE_SCALE)
        if self.shape is None:
            if not (maps.min() >= 0 and maps.max() <= 1.001):
                self._refuse_maps()
            self._add("map_sums", (slice(None), head), maps.astype(np.float64) * MASS_SCALE)
        else:
            prefix, size = self.shape.prefix_tokens, self.sums["offset_sums"].shape[1:]
            mass, valued = np.zeros(size), np.zeros(size)
            bad = _add_offsets(maps, norms.astype(np.float64), prefix, *self.shape.grid, mass, valued)
            edges = [maps[:, :prefix].sum(0, dtype=np.float64), maps[:, prefix:, :prefix].sum(0, dtype=np.float64)]
            bad |= not all(np.isfinite(edge).all() for edge in edges)
            if bad:
                self._refuse_maps()
            for part, found in zip(("offset_sums", "row_sums", "column_sums"), (mass, *edges), strict=True):
                self._add(part, head, found * MASS_SCALE)
            self._add("offset_values", head, valued * VALUE_SCALE)

    def _refuse_maps(self) -> NoReturn:
        raise VitfrostError(f"cannot calibrate: site {self.name} has attention weights that are not numbers between 0 and 1")

    def _add(self, part: str, where: Any, found: np.ndarray) -> None:
        sums = self.sums[part]
        if found.size and float(np.abs(found).max()) + float(np.abs(sums[where]).max()) > LARGEST:
            raise VitfrostError(f"cannot calibrate: the values of {self.name} are too large to sum up")
        sums[where] += np.rint(found).astype(np.int64)


def sums_shapes(maps_shape: tuple[int, int, int, int], shape: Shape | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the sums of a site, by their names in a file."""
    windows, heads, _, keys = maps_shape
    made: dict[str, tuple[int, ...]] = {"value_sums": (windows, heads, keys)}
    if shape is None:
        return made | {"map_sums": maps_shape}
    offsets = (heads, 2 * shape.grid[0] - 1, 2 * shape.grid[1] - 1)
    prefix = shape.prefix_tokens
    return made | {
        "offset_sums": offsets, "offset_values": offsets,
        "row_sums": (heads, prefix, shape.tokens), "column_sums": (heads, shape.patches, prefix),
    }  # fmt: skip
