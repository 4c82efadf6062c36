"""Images for the passes of a compression: seeded draws from one source, each with its record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import VitfrostError
from ..images.batches import BatchLoader, images_hash, name_skipped, take_usable
from ..images.given import AnyImages, ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..model import Model

log = logging.getLogger("vitfrost")
FEWEST_TO_CALIBRATE = 16


def draw_calibration(loaded: Model, images: ImagesLike, count: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """The calibration batch [count, 3, height, width], a seeded draw from the folder, and the record of what was drawn."""
    drawn = find_given(images).shuffled(seed)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), count)
    if len(batch.positions) < FEWEST_TO_CALIBRATE:
        log.warning(
            "ranges are calibrated on %d image%s, which fit those and little else; give 32 or more",
            len(batch.positions), "s" if len(batch.positions) > 1 else "",
        )  # fmt: skip
    record = {"images": len(batch.positions), "images_hash": images_hash(drawn, batch.digests), "seed": seed, "skipped": len(batch.skipped)}
    return batch.pixels, record


class DrawnBatches:
    """A seeded draw that is read batch by batch, once."""

    def __init__(self, drawn: AnyImages, preprocess: Preprocess, batch_size: int, seed: int):
        self._drawn, self._seed = drawn, seed
        self._loader = BatchLoader(drawn, preprocess, batch_size)

    @property
    def expected(self) -> int | None:
        """The number of batches, where it is known."""
        return self._loader.expected

    def __iter__(self) -> Iterator[Float[Tensor, "images 3 height width"]]:
        return (batch.pixels for batch in self._loader)

    def record(self) -> dict[str, Any]:
        """What was drawn; complete once everything has been read."""
        digests = self._loader.digests
        name_skipped(self._drawn, self._loader.skipped, len(digests))
        return {
            "images": len(digests),
            "images_hash": images_hash(self._drawn, digests),
            "seed": self._seed,
            "skipped": len(self._loader.skipped),
        }


class Draws:
    """What passes draw from one source of images (None: there is none), all with one seed. `seeds` has the seed by use, for the record."""

    def __init__(self, loaded: Model, images: ImagesLike | None, seed: int):
        self.seed = seed
        self.seeds: dict[str, int] = {}
        self._loaded, self._images = loaded, images

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
        return DrawnBatches(drawn, Preprocess(self._loaded.preprocessing), batch_size, self.seed)

    def _source(self, use: str) -> ImagesLike:
        if self._images is None:
            raise VitfrostError(f"{use} needs images; give --images DIR")
        return self._images
