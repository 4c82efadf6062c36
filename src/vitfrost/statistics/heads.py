"""What is known about the maps of one attention site by whole heads: sums that kernels are fitted to, and a sample of weights.

Shapes: W windows, H heads, N queries, M keys, P prefix tokens, S sampled weights of a head, gh x gw the patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ..errors import VitfrostError
from ..methods.constant_heads.constants import Shape
from ..methods.constant_heads.offsets import MapSums
from . import sample
from .head_sums import MASS_SCALE, VALUE_SCALE, Sums, sums_shapes
from .sensitivity import SENSITIVITY_ARRAYS, Sensitivity
from .site import ARRAYS, SiteStatistics, check_arrays, merge_sites

COUNTED = tuple(name for name in ARRAYS if name != "value_sums")
GRID, SAMPLED = "grid", "sampled"


class EveryWeightMissing(VitfrostError, AttributeError):
    """What was asked for is known of single weights only, so it is no attribute of what is here."""


@dataclass(frozen=True, eq=False)
class HeadStatistics:
    """Statistics of one site without anything of the size of its maps.

    `shape`: the patch grid that queries and keys lie on; None where they lie on none. `sums`: fixed-point sums (statistics.head_sums).
    `sampled` [S]: flat places in [windows, queries, keys] of the weights of every head that `sample` [1, H, 1, S] knows one by one, with
    histograms, as if they were all. `allowed` [W, N, M]: pairs that a shift mask leaves (None: all).
    """

    name: str
    maps_shape: tuple[int, int, int, int]
    images: int
    shape: Shape | None
    sums: Sums
    sampled: Int64[np.ndarray, " sampled"]
    sample: SiteStatistics
    allowed: Bool[np.ndarray, "windows queries keys"] | None = None

    @cached_property
    def value_norm(self) -> Float32[np.ndarray, "windows heads keys"]:
        """Mean over the images of the squared norm of a value after its head's slice of the output projection."""
        return (self.sums["value_sums"] / (VALUE_SCALE * max(self.images, 1))).astype(np.float32)

    @property
    def sensitivity(self) -> Sensitivity | None:
        """That of the sampled weights."""
        return self.sample.sensitivity

    @cached_property
    def weights(self) -> Float64[np.ndarray, " sampled"]:
        """For how many weights of a head each sampled one stands."""
        windows, _, queries, keys = self.maps_shape
        return sample.weights(self.sampled, (windows, queries, keys), self.shape, self.allowed)

    @property
    def places(self) -> tuple[Int64[np.ndarray, " sampled"], Int64[np.ndarray, " sampled"], Int64[np.ndarray, " sampled"]]:
        """Window, query and key of every sampled weight."""
        _, _, queries, keys = self.maps_shape
        return self.sampled // (queries * keys), self.sampled // keys % queries, self.sampled % keys

    def map_sums(self, head: int) -> MapSums:
        """What a kernel is fitted to. Raises VitfrostError where queries and keys lie on no grid."""
        if self.shape is None:
            raise VitfrostError(f"the maps of {self.name} lie on no patch grid, so there are no sums by relative position")
        prefix, images = self.shape.prefix_tokens, max(self.images, 1)
        columns = self.sums["column_sums"][head] / (MASS_SCALE * images)
        return MapSums(
            by_offset=self.sums["offset_values"][head] / (VALUE_SCALE * images),
            importance=self.value_norm[:, head, prefix:].astype(np.float64),
            mass=1 - columns.sum(1),
            prefix_rows=self.sums["row_sums"][head] / (MASS_SCALE * images),
            prefix_columns=columns,
            allowed=None if self.allowed is None else self.allowed[:, prefix:, prefix:],
        )

    def mass_by_offset(self, head: int) -> Float64[np.ndarray, "offsets_down offsets_right"]:
        """What the patches of a mean map give to each relative position on the grid, as a share of all that queries of patches give."""
        if self.shape is None:
            raise VitfrostError(f"the maps of {self.name} lie on no patch grid, so there are no sums by relative position")
        queries = self.maps_shape[0] * self.shape.patches
        made: Float64[np.ndarray, "a b"] = self.sums["offset_sums"][head] / (MASS_SCALE * max(self.images, 1) * queries)
        return made

    def mean_map(self, head: int) -> Float32[np.ndarray, "windows queries keys"]:
        """The mean map of a head of a site without a grid, where all are summed up. Raises VitfrostError for others."""
        if "map_sums" not in self.sums:
            self._refuse("mean")
        return (self.sums["map_sums"][:, head] / (MASS_SCALE * max(self.images, 1))).astype(np.float32)

    def _refuse(self, what: str) -> NoReturn:
        raise EveryWeightMissing(
            f"the statistics are of whole heads and do not have the {what} of every weight of {self.name}; calibrate with "
            'Calibrate(detail="entries")'
        )

    @property
    def mean(self) -> Any:
        """Not there: raises VitfrostError, as do `variance` and `entropy`."""
        self._refuse("mean")

    @property
    def variance(self) -> Any:
        self._refuse("variance")

    @property
    def entropy(self) -> Any:
        self._refuse("entropy")

    def __repr__(self) -> str:
        return f"HeadStatistics({self.name}, maps {list(self.maps_shape)}, {self.images} images, {len(self.sampled)} sampled weights)"

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are stored, by name."""
        stored = {name: getattr(self.sample, name) for name in COUNTED} | self.sums | {SAMPLED: self.sampled}
        stored[GRID] = np.array([] if self.shape is None else [*self.shape.grid, self.shape.prefix_tokens], np.int64)
        if self.sensitivity is not None:
            stored |= self.sensitivity.arrays()
        return stored if self.allowed is None else stored | {"allowed": self.allowed}

    def plus(self, other: HeadStatistics) -> HeadStatistics:
        """Those of the images of both, exactly. Raises VitfrostError where other weights were sampled."""
        if self.shape != other.shape or not np.array_equal(self.sampled, other.sampled):
            raise VitfrostError(f"statistics that sample other weights of {self.name} cannot be merged; calibrate both again")
        sums = {name: array + other.sums[name] for name, array in self.sums.items()}
        joined = merge_sites(self.sample, other.sample)
        return HeadStatistics(self.name, self.maps_shape, self.images + other.images, self.shape, sums, self.sampled, joined, self.allowed)


def made_of(
    name: str, maps_shape: tuple[int, int, int, int], images: int, shape: Shape | None, arrays: Mapping[str, np.ndarray],
    sensitivity: Sensitivity | None,
) -> HeadStatistics:  # fmt: skip
    """Statistics of the stored arrays; the value norms of sampled weights are those of their keys."""
    _, heads, queries, keys = maps_shape
    sampled = arrays[SAMPLED]
    norms = arrays["value_sums"][sampled // (queries * keys), :, sampled % keys].T[None]
    counted = {part: arrays[part] for part in COUNTED}
    of_sample = SiteStatistics(name, (1, heads, 1, len(sampled)), images, value_sums=norms, **counted, sensitivity=sensitivity)  # type: ignore[arg-type]
    sums = {part: arrays[part] for part in sums_shapes(maps_shape, shape)}
    return HeadStatistics(name, maps_shape, images, shape, sums, sampled, of_sample, arrays.get("allowed"))


def read(
    name: str, maps_shape: tuple[int, int, int, int], images: int, tensors: Mapping[str, np.ndarray], sensitive: bool, where: str
) -> HeadStatistics:
    """Statistics out of a file's arrays. `where` begins the message about a damaged file. Raises VitfrostError for arrays that are not
    there or do not fit."""
    needed = [*COUNTED, SAMPLED, GRID, "value_sums", *(SENSITIVITY_ARRAYS if sensitive else ())]
    for part in needed:
        if part not in tensors:
            raise VitfrostError(f"{where} {part} is missing; calibrate again")
    windows, heads, queries, keys = maps_shape
    grid, sampled = tensors[GRID], tensors[SAMPLED]
    shape = Shape((int(grid[0]), int(grid[1])), int(grid[2])) if grid.shape == (3,) else None
    fits = not len(grid) if shape is None else (min(shape.grid) > 0 and shape.prefix_tokens >= 0 and queries == keys == shape.tokens)
    entries = windows * queries * keys
    ordered = len(sampled) > 0 and sampled.dtype == np.int64 and sampled[0] >= 0 and sampled[-1] < entries and (np.diff(sampled) > 0).all()
    if not fits or not ordered:
        raise VitfrostError(f"{where} {'sampled' if fits else 'grid'} does not fit; calibrate again")
    for part, expected in sums_shapes(maps_shape, shape).items():
        if part not in tensors or tensors[part].shape != expected or tensors[part].dtype != np.int64 or tensors[part].min(initial=0) < 0:
            raise VitfrostError(f"{where} {part} does not fit; calibrate again")
    if "allowed" in tensors and (tensors["allowed"].shape != (windows, queries, keys) or tensors["allowed"].dtype != np.bool_):
        raise VitfrostError(f"{where} allowed does not fit; calibrate again")
    counted = {part: tensors[part] for part in (*COUNTED, *(SENSITIVITY_ARRAYS if sensitive else ()))}
    check_arrays(counted, (1, heads, 1, len(sampled)), images, where)
    found = Sensitivity(images, **{part: tensors[part] for part in SENSITIVITY_ARRAYS}) if sensitive else None
    return made_of(name, maps_shape, images, shape, tensors, found)
