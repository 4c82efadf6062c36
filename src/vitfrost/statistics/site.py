"""What is known about the maps of one attention site, weight by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16, UInt32

from ..errors import VitfrostError
from . import entropy, histogram
from .sensitivity import SENSITIVITY_ARRAYS, Sensitivity

VALUE_SCALE = 2.0**20
ARRAYS = {
    "widths": np.uint16,
    "bins": np.uint8,
    "counts": None,
    "sums": np.int64,
    "squares": np.int64,
    "value_sums": np.int64,
}


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """What is known about the maps of one attention site after `images` images.

    Per entry, in the order of `maps_shape` = (windows, heads, queries, keys): the sparse histogram of 256 bins (see
    `statistics.entropy`) and fixed-point sums (see `statistics.histogram`). `value_sums` [windows, heads, keys] are sums of
    ||W_O^h v_j||^2, scaled by 2^20. `allowed` [windows, queries, keys] marks the pairs that may see each other; None: all do.
    Masked pairs are never counted; every statistic of theirs is 0. `sensitivity` is None unless it was asked for.
    """

    name: str
    maps_shape: tuple[int, int, int, int]
    images: int
    widths: UInt16[np.ndarray, " entries"]
    bins: UInt8[np.ndarray, " cells"]
    counts: UInt8[np.ndarray, " cells"] | UInt16[np.ndarray, " cells"] | UInt32[np.ndarray, " cells"]
    sums: Int64[np.ndarray, " entries"]
    squares: Int64[np.ndarray, " entries"]
    value_sums: Int64[np.ndarray, "windows heads keys"]
    allowed: Bool[np.ndarray, "windows queries keys"] | None = None
    sensitivity: Sensitivity | None = None

    @cached_property
    def mean(self) -> Float32[np.ndarray, "windows heads queries keys"]:
        """Mean map over the images (A^mu of equation 15)."""
        return entropy.mean_of(self.sums, self.images).reshape(self.maps_shape)

    @cached_property
    def variance(self) -> Float32[np.ndarray, "windows heads queries keys"]:
        """Variance over the images (population)."""
        return entropy.variance_of(self.sums, self.squares, self.images).reshape(self.maps_shape)

    @cached_property
    def entropy(self) -> Float32[np.ndarray, "windows heads queries keys"]:
        """Entropy in bits of equation 13."""
        return entropy.entropy_bits(self.widths, self.counts, self.images).reshape(self.maps_shape)

    @cached_property
    def value_norm(self) -> Float32[np.ndarray, "windows heads keys"]:
        """Mean over the images of the squared norm of a value after its head's slice of the output projection."""
        return (self.value_sums / (VALUE_SCALE * max(self.images, 1))).astype(np.float32)

    def __repr__(self) -> str:
        return f"SiteStatistics({self.name}, maps {list(self.maps_shape)}, {self.images} images)"

    def plus(self, other: SiteStatistics) -> SiteStatistics:
        """Those of the images of both, exactly."""
        return merge_sites(self, other)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are stored, by name."""
        stored = {name: getattr(self, name) for name in ARRAYS}
        if self.sensitivity is not None:
            stored |= self.sensitivity.arrays()
        return stored if self.allowed is None else stored | {"allowed": self.allowed}


def kl_maps(p: SiteStatistics, q: SiteStatistics) -> Float32[np.ndarray, "windows heads queries keys"]:
    """KL divergence D(p || q) in bits per attention weight (equation 14), add-one smoothed; 0 at masked pairs.

    Raises VitfrostError when the maps have different shapes.
    """
    if p.maps_shape != q.maps_shape:
        raise VitfrostError(f"the maps of {p.name} {list(p.maps_shape)} and {q.name} {list(q.maps_shape)} cannot be compared")
    divergence = entropy.kl_bits(p.widths, p.bins, p.counts, p.images, q.widths, q.bins, q.counts, q.images)
    return divergence.reshape(p.maps_shape)


def merge_sites(a: SiteStatistics, b: SiteStatistics) -> SiteStatistics:
    images = a.images + b.images
    widths, bins, counts = histogram.merge_sparse((a.widths, a.bins, a.counts), (b.widths, b.bins, b.counts), images)
    return SiteStatistics(
        a.name, a.maps_shape, images, widths, bins, counts,
        a.sums + b.sums, a.squares + b.squares, a.value_sums + b.value_sums, a.allowed,
        None if a.sensitivity is None or b.sensitivity is None else a.sensitivity.plus(b.sensitivity),
    )  # fmt: skip


def check_arrays(arrays: dict[str, np.ndarray], maps_shape: Sequence[int], images: int, where: str) -> None:
    """Raise VitfrostError when the arrays of a site do not fit each other (a damaged or edited file)."""
    windows, heads, queries, keys = maps_shape
    entries = windows * heads * queries * keys
    cells = int(arrays["widths"].sum(dtype=np.int64))
    shapes = {
        "widths": (entries,), "bins": (cells,), "counts": (cells,), "sums": (entries,), "squares": (entries,),
        "value_sums": (windows, heads, keys), "allowed": (windows, queries, keys), "value_zeroth": (windows, heads, keys),
    }  # fmt: skip
    kinds = {**ARRAYS, "counts": histogram.count_type(images), "allowed": np.bool_}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, tuple(maps_shape)) or array.dtype != kinds.get(name, np.float64):
            raise VitfrostError(f"{where} {name} does not fit; calibrate again")
        if name in SENSITIVITY_ARRAYS and not (array.min(initial=0) >= 0 and array.max(initial=0) < np.inf):
            raise VitfrostError(f"{where} {name} holds values that are no sums of squares; calibrate again")
    if cells and (int(arrays["counts"].max()) > images or int(arrays["widths"].max()) > histogram.BINS):
        raise VitfrostError(f"{where} counts are out of range; calibrate again")
