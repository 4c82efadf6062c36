"""Batches of images with a fixed composition, decoded by a few threads while the caller computes.

The memory in use is that of the images ahead (about one batch), whatever the number of images.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import VitfrostError
from .decode import Decoded
from .given import AnyImages, GivenImages
from .preprocess import Preprocess

log = logging.getLogger("vitfrost")
SHOWN = 5  # of a list of names in a message


@dataclass
class Batch:
    """Usable images in order. `positions` index the ImageSet, as do the keys of `digests` (SHA-256 of the file of each
    image here) and `skipped` (the reason for each image that belongs to the batch but could not be used)."""

    pixels: Float[Tensor, "images 3 height width"]
    labels: list[int] | None
    positions: list[int]
    digests: dict[int, str]
    skipped: dict[int, str]


class BatchLoader:
    """Iterate over the batches of an ImageSet; a new iteration starts again.

    Batch b holds the positions [b * batch_size, (b + 1) * batch_size), less unusable files; a batch without a usable image is
    left out. Process `rank` of `world` takes the batches rank, rank + world, ..., so no batch depends on `world`.
    After an iteration `skipped` holds {position: reason} and `digests` {position: SHA-256 of the file} of this process.
    `kept` (a dict of the caller's) keeps decoded files (3 * height * width bytes per image), so that another iteration, or another
    loader of the same images and preprocessing, decodes nothing.

    Raises VitfrostError for sizes out of range and, with `world` 1, at the end of an iteration that found no usable image.
    """

    def __init__(
        self,
        image_set: AnyImages,
        preprocess: Preprocess,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        kept: dict[int, Decoded] | None = None,
    ):
        for name, value in (("batch size", batch_size), ("number of threads", threads), ("number of processes", world)):
            if value < 1:
                raise VitfrostError(f"the {name} must be at least 1, not {value}")
        if not 0 <= rank < world:
            raise VitfrostError(f"the rank {rank} is not one of {world} processes; ranks are 0 to {world - 1}")
        self.image_set = image_set
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.skipped: dict[int, str] = {}
        self.digests: dict[int, str] = {}
        self._rank, self._world, self._threads = rank, world, threads
        self._kept = kept

    def __iter__(self) -> Iterator[Batch]:
        self.skipped, self.digests = {}, {}
        decoded = decode_in_order(self.image_set, self.preprocess, self._positions(), self._threads, self.batch_size, self._kept)
        with closing(decoded):
            for _, members in groupby(decoded, key=lambda item: item[0] // self.batch_size):
                batch = _collect(self.image_set, self.preprocess, list(members), self.skipped)
                if batch is not None:
                    self.digests |= batch.digests
                    yield batch
        if self._world == 1 and not self.digests:
            raise _nothing_usable(self.image_set, self.skipped)

    @property
    def expected(self) -> int | None:
        """How many batches this process is going to give, where that is known."""
        images = self.image_set.expected
        return None if images is None else len(range(self._rank * self.batch_size, images, self._world * self.batch_size))

    def _positions(self) -> Iterator[int]:
        size = len(_every(self.image_set))
        for start in range(self._rank * self.batch_size, size, self._world * self.batch_size):
            yield from range(start, min(start + self.batch_size, size))


def decode_in_order(
    image_set: AnyImages,
    preprocess: Preprocess,
    positions: Iterable[int],
    threads: int,
    ahead: int,
    kept: dict[int, Decoded] | None = None,
) -> Generator[tuple[int, Decoded], None, None]:
    """Yield (position, decoded file) in the order of `positions`, at most `ahead` + `threads` files in advance.

    `kept`: take from and add to these decoded files.
    """
    if isinstance(image_set, GivenImages):
        yield from image_set.read(positions, preprocess)
        return
    pending: deque[tuple[int, Future[Decoded]]] = deque()

    def work(position: int) -> Decoded:
        if kept is not None and position in kept:
            return kept[position]
        return image_set.decode(position, preprocess)

    def oldest() -> tuple[int, Decoded]:
        position, future = pending.popleft()
        decoded = future.result()
        if kept is not None:
            kept[position] = decoded
        return position, decoded

    pool = ThreadPoolExecutor(threads, thread_name_prefix="vitfrost-decode")
    try:
        for position in positions:
            pending.append((position, pool.submit(work, position)))
            if len(pending) >= ahead + threads:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        pool.shutdown(cancel_futures=True)


def take_usable(image_set: AnyImages, preprocess: Preprocess, count: int, *, threads: int = 2) -> Batch:
    """The first `count` usable images in order, as one batch; fewer where the set has no more.

    `skipped` names the unusable files met on the way, as does a warning. Raises VitfrostError for a count below 1, and when nothing is
    usable.
    """
    if count < 1:
        raise VitfrostError(f"cannot take {count} images; the number must be at least 1")
    taken: list[tuple[int, Decoded]] = []
    usable = 0
    with closing(decode_in_order(image_set, preprocess, _every(image_set), threads, 2 * threads)) as decoded:
        for item in decoded:
            taken.append(item)
            usable += item[1].pixels is not None
            if usable == count:
                break
    skipped: dict[int, str] = {}
    batch = _collect(image_set, preprocess, taken, skipped)
    if batch is None:
        raise _nothing_usable(image_set, skipped)
    name_skipped(image_set, skipped, len(batch.positions))
    return batch


def name_skipped(image_set: AnyImages, skipped: Mapping[int, str], used: int) -> None:
    """Warn of pictures that could not be used: their names and why. `skipped`: {position: reason}; `used`: how many could be."""
    if not skipped:
        return
    shown = [f"{image_set.name_of(position)}: {skipped[position]}" for position in sorted(skipped)[:SHOWN]]
    more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    log.warning("%d of %d images were skipped (%s%s)", len(skipped), len(skipped) + used, "; ".join(shown), more)


def _every(image_set: AnyImages) -> range:
    """The positions of a set; more than there can be where only reading tells how many there are."""
    return range(sys.maxsize if image_set.size is None else image_set.size)


def images_hash(image_set: AnyImages, digests: Mapping[int, str]) -> str:
    """One SHA-256 over (relative name, digest) of the used files in the order of their positions."""
    total = hashlib.sha256()
    for position in sorted(digests):
        total.update(f"{image_set.name_of(position)}\0{digests[position]}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _collect(image_set: AnyImages, preprocess: Preprocess, members: list[tuple[int, Decoded]], skipped: dict[int, str]) -> Batch | None:
    """Build a batch from decoded files and add the unusable ones to `skipped`; None when no file is usable."""
    unusable = {position: decoded.reason for position, decoded in members if decoded.pixels is None}
    skipped |= unusable
    usable = [(position, decoded.pixels) for position, decoded in members if decoded.pixels is not None]
    if not usable:
        return None
    positions = [position for position, _ in usable]
    pixels = np.stack([pixels for _, pixels in usable])
    return Batch(
        pixels=preprocess.normalize(pixels) if pixels.dtype == np.uint8 else torch.from_numpy(pixels),
        labels=_labels(image_set, members, positions),
        positions=positions,
        digests={position: decoded.digest for position, decoded in members if decoded.pixels is not None},
        skipped=unusable,
    )


def _labels(image_set: AnyImages, members: list[tuple[int, Decoded]], positions: list[int]) -> list[int] | None:
    if not isinstance(image_set, GivenImages):
        return None if image_set.labels is None else [image_set.labels[position] for position in positions]
    labels = [decoded.label for _, decoded in members]
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise VitfrostError(
            f"some of {image_set.root} have a label, and {image_set.name_of(labels.index(None))} has none; give one for each"
        )
    return known or None


def _nothing_usable(image_set: AnyImages, skipped: Mapping[int, str]) -> VitfrostError:
    if isinstance(image_set, GivenImages):
        return VitfrostError("there is no image in what was given")
    first = min(skipped)
    return VitfrostError(
        f"none of the {len(image_set)} images of {image_set.root} is usable; the first, {image_set.files[first]}: {skipped[first]}"
    )
