"""What a pass is, and what it works on: a model on its way, and the images that it may draw."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import VitfrostError
from ..images.batches import BatchLoader, images_hash, name_skipped, take_usable
from ..images.given import AnyImages, ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..model import Model
from ..plans.schema import Plan
from ..progress import doing
from ..statistics.record import Statistics
from ..vit.sites import ModelSites

log = logging.getLogger("vitfrost")
FEWEST_TO_CALIBRATE = 16


def draw_calibration(loaded: Model, images: ImagesLike, count: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """The calibration batch [count, 3, height, width], a seeded draw from the folder, and the record of what was drawn."""
    drawn = find_given(images).shuffled(seed)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), count)
    _warn_of_few(len(batch.positions))
    return batch.pixels, _record(drawn, batch.digests, seed, len(batch.skipped))


def _warn_of_few(images: int) -> None:
    if images < FEWEST_TO_CALIBRATE:
        few = f"{images} image{'s' if images > 1 else ''}"
        log.warning("ranges are calibrated on %s, which fit those and little else; give 32 or more", few)


def _record(drawn: AnyImages, digests: dict[int, str], seed: int, skipped: int) -> dict[str, Any]:
    return {"images": len(digests), "images_hash": images_hash(drawn, digests), "seed": seed, "skipped": skipped}


class DrawnBatches:
    """A seeded draw that is read batch by batch, once."""

    def __init__(self, drawn: AnyImages, preprocess: Preprocess, batch_size: int, seed: int):
        self._drawn, self._seed = drawn, seed
        self._loader = BatchLoader(drawn, preprocess, batch_size)

    @property
    def expected(self) -> int | None:
        """The number of batches, where it is known."""
        return self._loader.expected

    @property
    def digests(self) -> set[str]:
        """SHA-256 of the files that have been read."""
        return set(self._loader.digests.values())

    def __iter__(self) -> Iterator[Float[Tensor, "images 3 height width"]]:
        return (batch.pixels for batch in self._loader)

    def record(self) -> dict[str, Any]:
        """What was drawn; complete once everything has been read."""
        digests = self._loader.digests
        name_skipped(self._drawn, self._loader.skipped, len(digests))
        return _record(self._drawn, digests, self._seed, len(self._loader.skipped))


class Draws:
    """What passes draw from one source of images (None: there is none), all with one seed. `seeds` has the seed by use, for the record."""

    def __init__(self, loaded: Model, images: ImagesLike | None, seed: int):
        self.seed = seed
        self.seeds: dict[str, int] = {}
        self._loaded, self._images = loaded, images
        self._read: list[DrawnBatches] = []

    @property
    def given(self) -> bool:
        """True where there are images."""
        return self._images is not None

    def batch(self, use: str, count: int) -> tuple[Float[Tensor, "images 3 height width"], dict[str, Any]]:
        """`count` images in one batch, and the record of the draw."""
        drawn = draw_calibration(self._loaded, self._source(use), count, self.seed)
        self.seeds[use] = self.seed
        return drawn

    def batches(self, use: str, count: int, batch_size: int) -> DrawnBatches:
        """At most `count` images in batches."""
        drawn = find_given(self._source(use)).subset(count, self.seed)
        self.seeds[use] = self.seed
        self._read.append(DrawnBatches(drawn, Preprocess(self._loaded.preprocessing), batch_size, self.seed))
        return self._read[-1]

    def batch_apart(
        self, use: str, count: int, share: int, most: int
    ) -> tuple[Float[Tensor, "images 3 height width"], Float[Tensor, "held_out 3 height width"], dict[str, Any]]:
        """`count` images, of which one in `share`, `most` at most, is held out, and the record of the draw.

        Images held out are the last that stand once among those drawn, and in no batches that were read before, as far as there are such:
        `held_out_seen` in the record says how many are not. A single image is both.
        """
        drawn, seen = find_given(self._source(use)).shuffled(self.seed), set().union(*(read.digests for read in self._read))
        batch = take_usable(drawn, Preprocess(self._loaded.preprocessing), count + len(seen))
        self.seeds[use] = self.seed
        digests = [batch.digests[position] for position in batch.positions]
        images = min(count, len(digests))
        _warn_of_few(images)
        times = Counter(digests)
        order = sorted(range(len(digests)), key=lambda place: digests[place] not in seen and times[digests[place]] == 1)
        held = order[-(min(images // share, most) or 1) :]
        fitted = sorted(set(range(len(digests))) - set(held))[: images - len(held)] or held
        known = sum(digests[place] in seen or times[digests[place]] > 1 for place in held)
        kept = {batch.positions[place]: digests[place] for place in {*fitted, *held}}
        record = _record(drawn, kept, self.seed, len(batch.skipped)) | ({"held_out_seen": known} if known else {})
        return batch.pixels[fitted], batch.pixels[sorted(held)], record

    def _source(self, use: str) -> ImagesLike:
        if self._images is None:
            raise VitfrostError(f"{use} needs images; give --images DIR")
        return self._images


Record = dict[str, Any]


@dataclass
class Work:
    """A model on its way through the passes.

    `model` is a copy on the CPU in which every attention layer is a MapAttention; passes change it in place. `sites` are those of `model`
    as it is now: a pass that changes layers puts the new ones here. `original` is the model that was given; nobody changes it.
    `statistics` are the ones that the plan was made from, where they are given. `draws` gives images. `records` holds what every pass did,
    by the pass's name. `scratch` is a folder beside the artifact where a pass that takes long may keep its state, None without an
    artifact on disk.
    """

    model: nn.Module
    sites: ModelSites
    original: Model
    plan: Plan
    statistics: Statistics | None
    draws: Draws
    progress: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    scratch: Path | None = None

    def needed_statistics(self) -> Statistics:
        """The statistics, for a pass that cannot do without. Raises VitfrostError where they are missing or not the plan's."""
        layers = self.plan.layers
        if self.statistics is None:
            freezes = any(layer.constant or any(head.entries for head in layer.heads) for layer in layers)
            what = "freezes maps" if freezes else "mixes maps as their similarity tells"
            raise VitfrostError(f"the plan {what}, which needs the statistics it was made from; give --statistics FILE")
        if self.plan.statistics is None or self.plan.statistics.hash != self.statistics.content_hash:
            raise VitfrostError("the plan was made from other statistics than these; give the file it was made from, or plan again")
        return self.statistics


@runtime_checkable
class Pass(Protocol):
    """One change of a model. Its options are its fields; everything else it finds in the work."""

    @property
    def name(self) -> str:
        """Under which its record stands in the artifact."""

    def check(self, work: Work) -> None:
        """Raise VitfrostError where something is missing that it needs. Called for all passes before the first is applied."""

    def apply(self, work: Work) -> Record | None:
        """Change `work.model` in place. Returns what to keep in the artifact (plain values), None for nothing.

        What it draws comes from a generator of its own, seeded with `work.draws.seed`: torch's own stays where it is."""


def apply_passes(passes: Sequence[Pass], work: Work) -> Work:
    """Check all passes, then apply them in order, and keep their records. Raises VitfrostError where one cannot be applied."""
    for one in passes:
        one.check(work)
    for one in passes:
        doing(f"compress: {one.name}")
        record = one.apply(work)
        if record is not None:
            work.records[one.name] = record
    return work
