"""Statistics of a model's attention maps as one value: per site and per attention weight, with what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8, UInt16, UInt32
from pydantic import ConfigDict

from ..errors import VitfrostError
from ..files import atomic_file
from ..identity import Identity
from ..records import Format, parse
from ..spelling import hashed
from . import entropy, histogram
from .sensitivity import SENSITIVITY_ARRAYS, Sensitivity
from .signatures import SiteHeader
from .similarity import added, moments_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

FORMAT_VERSION = 3  # 1 had no sensitivity, 2 no similarity and no feed-forward sites
FORMAT = Format("a statistics file", "vitfrost.statistics", FORMAT_VERSION, mend="calibrate again")
SIMILARITY = "similarity"
VALUE_SCALE = 2.0**20
_SINCE = {"sensitivity": 2, "similarity": 3, "feed_forward": 3, "structure": 3}
_ARRAYS = {
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

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are stored, by name."""
        stored = {name: getattr(self, name) for name in _ARRAYS}
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


@dataclass(frozen=True)
class StatisticsHeader:
    """Where statistics come from.

    `model` is the identity of the (original) model, `sites` its sites' signature. `precision` ("fp32" or "quantized") says
    on which model the maps were observed, `observed` ("before" or "after") on which side of the map quantizer. `limit` and
    `seed` drew the images from their folder (None where merged statistics differ); `skipped` counts the unusable ones.
    `sensitivity`: whether gradients were taken too; `similarity`: whether heads were compared. `feed_forward`: name, width, hidden
    channels and block of the feed-forward sites.
    `structure`: the hallucinated heads and compact blocks that the observed model had already, as in its plan (None: none).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: Identity
    sites: list[dict[str, Any]]
    precision: str
    observed: str
    quantization: dict[str, Any] | None
    images: int
    skipped: int
    images_hash: str
    seed: int | None
    limit: int | None
    sensitivity: bool = False
    similarity: bool = False
    feed_forward: list[dict[str, Any]] = field(default_factory=list)
    structure: dict[str, Any] | None = None
    version: int = FORMAT_VERSION


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of all attention sites of a model, in the order in which data passes them. Treated as immutable.

    `similarity` [T, T] over all T heads in order is None unless it was asked for (fixed-point sums of statistics.similarity).
    """

    header: StatisticsHeader
    sites: dict[str, SiteStatistics]
    similarity: Int64[np.ndarray, "heads heads"] | None = None

    def __getitem__(self, site: str) -> SiteStatistics:
        """The statistics of one site, such as "blocks.3.attn". Raises VitfrostError naming the sites there are."""
        if site not in self.sites:
            names = list(self.sites)
            raise VitfrostError(f"there is no site '{site}'; there are {len(names)}, {names[0]} to {names[-1]}")
        return self.sites[site]

    def __repr__(self) -> str:
        header = self.header
        more = [name for name in ("sensitivity", "similarity") if getattr(header, name)]
        return (
            f"Statistics({', '.join([header.model.name, f'{len(self.sites)} sites', f'{header.images} images', header.precision, *more])})"
        )

    def plot(
        self, site: str, head: int, picture: str | Path | Image | None = None, *, of: Literal["mean", "variance", "entropy"] = "mean",
        window: int = 0,
    ) -> Figure:  # fmt: skip
        """A matplotlib figure of a head's map over the patch grid: the class token's row, or the mean over the patches.

        `picture`: a file or a Pillow image to lay it over. `of`: mean map, its variance, or its entropy (bits). Raises VitfrostError for
        a site, head or window that is not there.
        """
        from .plot import plot_head

        return plot_head(self, site, head, picture, of=of, window=window)

    @cached_property
    def moments(self) -> Float64[np.ndarray, "heads heads"]:
        """Second moments of all heads' row-centered logits, NaN between heads whose maps differ in shape.

        Raises VitfrostError where heads were not compared.
        """
        if self.similarity is None:
            raise VitfrostError("the statistics do not say how alike heads are; calibrate with Calibrate(similarity=True)")
        return moments_of(self.similarity, self.header.images, self.header.sites)

    def head_moments(self, site: str) -> Float64[np.ndarray, "heads heads"]:
        """Those of the heads of one site. Raises VitfrostError as `moments`."""
        names = [known["name"] for known in self.header.sites]
        starts = np.cumsum([0, *(known["heads"] for known in self.header.sites)])
        own = slice(starts[names.index(site)], starts[names.index(site) + 1])
        return self.moments[own, own]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the header and all arrays; plans and artifacts name their statistics by it."""
        digest = hashlib.sha256(json.dumps(hashed(_header_values(self.header)), sort_keys=True, allow_nan=False).encode())
        for name, array in sorted(self._tensors().items()):
            digest.update(f"{name}|{array.dtype}|{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {f"{site.name}/{name}": array for site in self.sites.values() for name, array in site.arrays().items()}
        return tensors if self.similarity is None else tensors | {SIMILARITY: self.similarity}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; equal statistics give equal bytes.

        Raises VitfrostError when the place cannot be written.
        """
        from safetensors.numpy import save

        header = json.dumps(_header_values(self.header), sort_keys=True, allow_nan=False)
        with atomic_file(path) as temporary:
            temporary.write_bytes(save(self._tensors(), metadata={FORMAT.kind: header}))

    @staticmethod
    def load(path: str | Path) -> Statistics:
        """Read statistics. Raises VitfrostError for a file that is missing, truncated, foreign, damaged or too new."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise VitfrostError(f"no statistics file {path}; vitfrost calibrate writes one")
        try:
            with safe_open(path, framework="numpy") as file:
                header = _read_header((file.metadata() or {}).get(FORMAT.kind), path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise VitfrostError(f"{path} is no readable statistics file ({error}); it may be truncated: calibrate again") from error
        try:
            return Statistics(header, _read_sites(header, tensors, path), _read_similarity(header, tensors, path))
        except (KeyError, TypeError, ValueError) as error:
            raise FORMAT.damaged(path, f"a site: {type(error).__name__} {error}") from error

    @staticmethod
    def merge(parts: Iterable[Statistics]) -> Statistics:
        """Add statistics of disjoint sets of images: exactly those of all images together (sensitivity: to rounding).

        The merged `images_hash` is the sum of the parts' modulo 2^256. Parts may be given one by one (an iterator).
        Raises VitfrostError when models, sites, precision, quantization, sensitivity or similarity differ, or when there is no part.
        """
        merged: Statistics | None = None
        for part in parts:
            merged = part if merged is None else merged._plus(part)
        if merged is None:
            raise VitfrostError("no statistics to merge; name at least one file")
        return merged

    def _plus(self, other: Statistics) -> Statistics:
        mine, theirs = self.header, other.header
        other.check_fits(mine.model, mine.sites)
        for what in ("precision", "observed", "quantization", "sensitivity", "similarity"):
            if getattr(mine, what) != getattr(theirs, what):
                raise VitfrostError(f"statistics that differ in {what} cannot be merged: {getattr(mine, what)} and {getattr(theirs, what)}")
        if mine.structure != theirs.structure:
            raise VitfrostError("statistics of models with different hallucinated heads or compact blocks cannot be merged")
        if mine.images + theirs.images > histogram.MAX_IMAGES:
            raise VitfrostError(f"merged statistics would hold {mine.images + theirs.images} images; at most {histogram.MAX_IMAGES} fit")
        header = replace(
            mine,
            images=mine.images + theirs.images,
            skipped=mine.skipped + theirs.skipped,
            images_hash=f"{(int(mine.images_hash, 16) + int(theirs.images_hash, 16)) % 2**256:064x}",
            seed=mine.seed if mine.seed == theirs.seed else None,
            limit=mine.limit if mine.limit == theirs.limit else None,
            feed_forward=mine.feed_forward or theirs.feed_forward,
            version=max(mine.version, theirs.version),
        )
        similarity = None if self.similarity is None or other.similarity is None else added(self.similarity, other.similarity)
        return Statistics(header, {name: _merge_sites(site, other.sites[name]) for name, site in self.sites.items()}, similarity)

    def check_fits(self, identity: Identity, signature: list[dict[str, Any]]) -> None:
        """Raise VitfrostError, saying what differs, unless the statistics belong to this model and these sites."""
        own = self.header.model
        for key, what in (("name", "model"), ("image_size", "resolution"), ("state_hash", "weights")):
            if getattr(own, key) != getattr(identity, key):
                shown = "weight_tag" if key == "state_hash" else key
                raise VitfrostError(
                    f"the statistics belong to another {what}: theirs {_shown(own, shown)} ({str(_shown(own, key))[:24]}), "
                    f"here {_shown(identity, shown)} ({str(_shown(identity, key))[:24]}); calibrate this model"
                )
        if self.header.sites != signature:
            differing = [site["name"] for site in signature if site not in self.header.sites] or ["their number"]
            raise VitfrostError(f"the statistics belong to other attention sites ({differing[0]} differs); calibrate this model")


def _shown(identity: Identity, field: str) -> Any:
    value = getattr(identity, field)
    return list(value) if isinstance(value, tuple) else value


def _merge_sites(a: SiteStatistics, b: SiteStatistics) -> SiteStatistics:
    images = a.images + b.images
    widths, bins, counts = histogram.merge_sparse((a.widths, a.bins, a.counts), (b.widths, b.bins, b.counts), images)
    return SiteStatistics(
        a.name, a.maps_shape, images, widths, bins, counts,
        a.sums + b.sums, a.squares + b.squares, a.value_sums + b.value_sums, a.allowed,
        None if a.sensitivity is None or b.sensitivity is None else a.sensitivity.plus(b.sensitivity),
    )  # fmt: skip


def _header_values(header: StatisticsHeader) -> dict[str, Any]:
    values = asdict(header) | {"model": header.model.model_dump(mode="json")}
    # as it was written, so that plans made from the file still know it by its hash
    for name, version in _SINCE.items():
        if header.version < version:
            del values[name]
    return values


def _read_header(text: str | None, path: Path) -> StatisticsHeader:
    if text is None:
        raise VitfrostError(f"{path} is a safetensors file without attention statistics; vitfrost calibrate writes one")
    values = parse(text, "JSON", f"the header of {path}")
    if isinstance(values, dict):
        FORMAT.check_version({"version": None} | values, path)
    FORMAT.record(SiteHeader, values, path)
    return FORMAT.record(StatisticsHeader, values, path)


def _read_similarity(header: StatisticsHeader, tensors: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
    if not header.similarity:
        return None
    found, heads = tensors.get(SIMILARITY), sum(site["heads"] for site in header.sites)
    whole = found is not None and found.shape == (heads, heads) and found.dtype == np.int64
    if found is None or not whole or not np.array_equal(found, found.T) or found.diagonal().min(initial=0) < 0:
        raise VitfrostError(f"{path} is damaged: the similarity of its {heads} heads does not fit; calibrate again")
    return found


def _read_sites(header: StatisticsHeader, tensors: dict[str, np.ndarray], path: Path) -> dict[str, SiteStatistics]:
    sites = {}
    needed = [*_ARRAYS, *(SENSITIVITY_ARRAYS if header.sensitivity else ())]
    for signature in header.sites:
        name, shape = signature["name"], signature["maps"]
        missing = [array for array in needed if f"{name}/{array}" not in tensors]
        if missing:
            raise VitfrostError(f"{path} is damaged: {missing[0]} of site {name} is missing; calibrate again")
        arrays = {array: tensors[f"{name}/{array}"] for array in needed}
        if f"{name}/allowed" in tensors:
            arrays["allowed"] = tensors[f"{name}/allowed"]
        _check_arrays(arrays, shape, header.images, f"{path} is damaged: at site {name}")
        sums = {array: arrays.pop(array) for array in SENSITIVITY_ARRAYS if array in arrays}
        found = Sensitivity(header.images, **sums) if sums else None
        sites[name] = SiteStatistics(name, tuple(shape), header.images, **arrays, sensitivity=found)
    return sites


def _check_arrays(arrays: dict[str, np.ndarray], maps_shape: Sequence[int], images: int, where: str) -> None:
    """Raise VitfrostError when the arrays of a site do not fit each other (a damaged or edited file)."""
    windows, heads, queries, keys = maps_shape
    entries = windows * heads * queries * keys
    cells = int(arrays["widths"].sum(dtype=np.int64))
    shapes = {
        "widths": (entries,), "bins": (cells,), "counts": (cells,), "sums": (entries,), "squares": (entries,),
        "value_sums": (windows, heads, keys), "allowed": (windows, queries, keys), "value_zeroth": (windows, heads, keys),
    }  # fmt: skip
    kinds = {**_ARRAYS, "counts": histogram.count_type(images), "allowed": np.bool_}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, tuple(maps_shape)) or array.dtype != kinds.get(name, np.float64):
            raise VitfrostError(f"{where} {name} does not fit; calibrate again")
        if name in SENSITIVITY_ARRAYS and not (array.min(initial=0) >= 0 and array.max(initial=0) < np.inf):
            raise VitfrostError(f"{where} {name} holds values that are no sums of squares; calibrate again")
    if cells and (int(arrays["counts"].max()) > images or int(arrays["widths"].max()) > histogram.BINS):
        raise VitfrostError(f"{where} counts are out of range; calibrate again")
