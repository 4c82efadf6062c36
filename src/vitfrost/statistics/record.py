"""Statistics of a model's attention maps as one value: per site and per attention weight, with what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import ConfigDict

from ..configs.verbs import Detail
from ..errors import VitfrostError
from ..files import atomic_file
from ..identity import Identity
from ..records import Format, parse
from ..regular import is_file
from ..spelling import hashed
from . import heads, histogram
from .heads import HeadStatistics
from .sensitivity import SENSITIVITY_ARRAYS, Sensitivity
from .signatures import SiteHeader
from .similarity import added, moments_of
from .site import ARRAYS, SiteStatistics, check_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

FORMAT_VERSION = 4  # 1 had no sensitivity, 2 no similarity and no feed-forward sites, 3 no statistics of whole heads
ENTRIES_VERSION = 3  # of statistics of every weight, which are what they were
FORMAT = Format("a statistics file", "vitfrost.statistics", FORMAT_VERSION, mend="calibrate again")
SIMILARITY = "similarity"
_SINCE = {"sensitivity": 2, "similarity": 3, "feed_forward": 3, "structure": 3, "detail": 4}


@dataclass(frozen=True)
class StatisticsHeader:
    """Where statistics come from.

    `model` is the identity of the (original) model, `sites` its sites' signature. `precision` ("fp32" or "quantized") says
    on which model the maps were observed, `observed` ("before" or "after") on which side of the map quantizer. `limit` and
    `seed` drew the images from their folder (None where merged statistics differ); `skipped` counts the unusable ones.
    `sensitivity`: whether gradients were taken too; `similarity`: whether heads were compared. `feed_forward`: name, width, hidden
    channels and block of the feed-forward sites.
    `detail`: what is known of every weight (`entries`), or of whole heads and of a sample of their weights (`heads`).
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
    version: int = ENTRIES_VERSION
    detail: Detail = "entries"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of all attention sites of a model, in the order in which data passes them. Treated as immutable.

    `similarity` [T, T] over all T heads in order is None unless it was asked for (fixed-point sums of statistics.similarity).
    """

    header: StatisticsHeader
    sites: dict[str, SiteStatistics] | dict[str, HeadStatistics]
    similarity: Int64[np.ndarray, "heads heads"] | None = None

    def __getitem__(self, site: str) -> SiteStatistics | HeadStatistics:
        """The statistics of one site, such as "blocks.3.attn". Raises VitfrostError naming the sites there are."""
        if site not in self.sites:
            names = list(self.sites)
            raise VitfrostError(f"there is no site '{site}'; there are {len(names)}, {names[0]} to {names[-1]}")
        return self.sites[site]

    def __contains__(self, site: object) -> bool:
        """Whether there is such a site."""
        return site in self.sites

    def __iter__(self) -> Iterator[str]:
        """Names of the sites, in order."""
        return iter(self.sites)

    def __len__(self) -> int:
        """How many sites there are."""
        return len(self.sites)

    def entries(self, site: str) -> SiteStatistics:
        """Those of every weight of a site. Raises VitfrostError where the statistics are of whole heads."""
        found = self[site]
        if isinstance(found, HeadStatistics):
            raise VitfrostError('the statistics are of whole heads, not of every weight; calibrate with Calibrate(detail="entries")')
        return found

    def __repr__(self) -> str:
        header = self.header
        more = [name for name in ("sensitivity", "similarity") if getattr(header, name)]
        more += ["heads"] if header.detail == "heads" else []
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
        if not is_file(path):
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
        for what in ("precision", "observed", "quantization", "sensitivity", "similarity", "detail"):
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
        parts: Any = other.sites
        sites: Any = {name: site.plus(parts[name]) for name, site in self.sites.items()}
        return Statistics(header, sites, similarity)

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


def _read_sites(
    header: StatisticsHeader, tensors: dict[str, np.ndarray], path: Path
) -> dict[str, SiteStatistics] | dict[str, HeadStatistics]:
    if header.detail == "heads":
        return {site["name"]: _read_heads(site, header, tensors, path) for site in header.sites}
    sites = {}
    needed = [*ARRAYS, *(SENSITIVITY_ARRAYS if header.sensitivity else ())]
    for signature in header.sites:
        name, shape = signature["name"], signature["maps"]
        missing = [array for array in needed if f"{name}/{array}" not in tensors]
        if missing:
            raise VitfrostError(f"{path} is damaged: {missing[0]} of site {name} is missing; calibrate again")
        arrays = {array: tensors[f"{name}/{array}"] for array in needed}
        if f"{name}/allowed" in tensors:
            arrays["allowed"] = tensors[f"{name}/allowed"]
        check_arrays(arrays, shape, header.images, f"{path} is damaged: at site {name}")
        sums = {array: arrays.pop(array) for array in SENSITIVITY_ARRAYS if array in arrays}
        found = Sensitivity(header.images, **sums) if sums else None
        sites[name] = SiteStatistics(name, tuple(shape), header.images, **arrays, sensitivity=found)
    return sites


def _read_heads(signature: dict[str, Any], header: StatisticsHeader, tensors: dict[str, np.ndarray], path: Path) -> HeadStatistics:
    name, beginning = signature["name"], f"{signature['name']}/"
    own = {part.removeprefix(beginning): array for part, array in tensors.items() if part.startswith(beginning)}
    maps_shape = tuple(signature["maps"])
    return heads.read(name, maps_shape, header.images, own, header.sensitivity, f"{path} is damaged: at site {name}")  # type: ignore[arg-type]
