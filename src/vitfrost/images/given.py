"""Images in memory: any iterable of tensors or (tensor, label) pairs behind the interface of an ImageSet."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import VitfrostError
from .decode import Decoded, to_rgb
from .preprocess import Preprocess
from .source import ImageSet, draw, open_images

log = logging.getLogger("vitfrost")


class GivenImages:
    """Tensors as a model reads them: [3, height, width] or batches of them, floats that are normalized already, or uint8 to normalize.

    With a length and an index (a Dataset, a list, a tensor of images) a draw by a seed is one as from a folder. What can only be iterated
    (a DataLoader, a generator) is taken in its order: a limit takes the first images, and a seed changes nothing. An iterator, which
    can be read once, is kept in memory as far as it is read if `several` passes are needed.
    """

    root = "the images given"

    def __init__(self, data: Any, *, several: bool = False, positions: Sequence[int] | None = None, limit: int | None = None):
        self._data = data
        self._positions = positions
        self._limit = limit
        self._several = several
        if positions is None and _is_indexed(data):
            self._positions = range(len(data))
        once = isinstance(data, Iterator)
        self._kept: _Kept | None = _Kept(data) if once and several else None
        self._fresh = once

    @property
    def size(self) -> int | None:
        """How many images there are; None where only reading them tells."""
        return None if self._positions is None else len(self._positions)

    @property
    def expected(self) -> int | None:
        """How many images are going to come, for progress; None where nothing says it."""
        known = [size for size in (_length(self._data) if self.size is None else self.size, self._limit) if size is not None]
        return min(known, default=None)

    def name_of(self, position: int) -> str:
        """What messages call an image."""
        return f"image {position if self._positions is None else self._positions[position]}"

    def subset(self, limit: int | None, seed: int) -> GivenImages:
        """Draw `limit` images, of what can only be iterated the first. Raises VitfrostError for a limit below 1 or a negative seed."""
        found = draw(self.size, limit, seed)
        if limit is None:
            return self
        chosen = None if self._positions is None else [self._positions[index] for index in found or ()]
        made = GivenImages.__new__(GivenImages)
        made.__dict__.update(self.__dict__)
        made._positions, made._limit = chosen, limit
        return made

    def shuffled(self, seed: int) -> GivenImages:
        """All images in a drawn order; as they come where they can only be iterated."""
        return self if self.size is None else self.subset(self.size, seed)

    def read(self, positions: Iterable[int], preprocess: Preprocess) -> Iterator[tuple[int, Decoded]]:
        """(position, pixels with digest and label) for increasing positions. Raises VitfrostError for anything but images of its size."""
        if self._positions is not None:
            for position in positions:
                yield position, decoded(self._data[self._positions[position]], preprocess, self.name_of(position))
            return
        wanted, stream = iter(positions), self._stream()
        following = next(wanted, None)
        for position, item in zip(count() if self._limit is None else range(self._limit), stream, strict=False):
            if following is None:
                return
            if position == following:
                yield position, decoded(item, preprocess, self.name_of(position))
                following = next(wanted, None)

    def _stream(self) -> Iterator[Any]:
        if self._kept is not None:
            return _single(iter(self._kept))
        if isinstance(self._data, Iterator):
            if not self._fresh:
                raise VitfrostError(
                    "the images are an iterator, which can be read once, and more than one pass is needed; give a list, a Dataset or a "
                    "DataLoader"
                )
            self._fresh = False
        return _single(iter(self._data))


class _Kept:
    """An iterator that can be read again: what it has given is kept."""

    def __init__(self, iterator: Iterator[Any]):
        self._iterator = iterator
        self._items: list[Any] = []
        log.info("the images are an iterator, which can be read once; those that are read are kept in memory")

    def __iter__(self) -> Iterator[Any]:
        for index in count():
            if index == len(self._items):
                try:
                    self._items.append(next(self._iterator))
                except StopIteration:
                    return
            yield self._items[index]


AnyImages = ImageSet | GivenImages
ImagesLike = str | Path | ImageSet | GivenImages | torch.utils.data.Dataset[Any] | Iterable[Any]


def find_given(images: ImagesLike, *, several: bool = False) -> AnyImages:
    """What a user names as images, without their labels: a folder is searched, an iterable of tensors is wrapped.

    `several`: the images pass more than once. Raises VitfrostError for a folder without images, and for anything else.
    """
    if isinstance(images, ImageSet | GivenImages):
        return images
    if isinstance(images, str | Path):
        return open_images(images)
    if isinstance(images, dict) or not (isinstance(images, Iterable) or _is_indexed(images)):
        raise VitfrostError(f"a {type(images).__name__} holds no images; give a folder, or an iterable of tensors or (tensor, label) pairs")
    return GivenImages(images, several=several)


def _is_indexed(data: Any) -> bool:
    if isinstance(data, list | tuple):
        pixels, _ = _pair(data[0]) if data else (None, None)
        return not (isinstance(pixels, Tensor) and pixels.ndim == 4)  # a list of batches is taken apart as it is iterated
    return isinstance(data, Tensor) or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))


def _length(data: Any) -> int | None:
    """How many images a loader is going to give, where its sampler says so."""
    if not isinstance(data, torch.utils.data.DataLoader) or data.batch_size is None or data.drop_last:
        return None
    sampler: Any = data.sampler
    return len(sampler) if hasattr(sampler, "__len__") else None


def _single(items: Iterator[Any]) -> Iterator[Any]:
    """Images one by one, batches taken apart."""
    for item in items:
        pixels, labels = _pair(item)
        if isinstance(pixels, Tensor) and pixels.ndim == 4:
            for index in range(len(pixels)):
                yield pixels[index] if labels is None else (pixels[index], labels[index])
        else:
            yield item


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple | list) and len(item) == 1:  # a TensorDataset of pixels alone gives those
        return item[0], None
    return item, None


def decoded(item: Any, preprocess: Preprocess, name: str) -> Decoded:
    """An image as batches are made of: normalized pixels with the SHA-256 of the bytes given, and its label.

    Raises VitfrostError where it is no tensor, of another size than the model reads, or not finite.
    """
    pixels, label = _pair(item)
    if isinstance(pixels, Image.Image):
        pixels = torch.from_numpy(preprocess.pixels(to_rgb(pixels)))
    if not isinstance(pixels, Tensor):
        raise VitfrostError(f"{name} is a {type(pixels).__name__}; give tensors [3, height, width], or (tensor, label) pairs")
    expected = (3, *preprocess.input_size)
    if tuple(pixels.shape) != expected:
        raise VitfrostError(f"{name} is {list(pixels.shape)}; this model reads {list(expected)}")
    pixels = pixels.detach().cpu().contiguous()
    digest = hashlib.sha256(pixels.view(torch.uint8).numpy().tobytes()).hexdigest()
    if pixels.dtype == torch.uint8:
        pixels = preprocess.normalize(pixels.numpy()[None])[0]
    if not pixels.is_floating_point() or not bool(torch.isfinite(pixels).all()):
        raise VitfrostError(f"{name} holds numbers that are not finite, or no numbers at all; give normalized floats or uint8")
    return Decoded(pixels.float().numpy(), digest, "", None if label is None else _class(label, name))


def _class(label: Any, name: str) -> int:
    try:
        number = int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VitfrostError(f"the label of {name} is no class; give whole numbers from 0 on") from error
    if number < 0 or number != label:
        raise VitfrostError(f"the label of {name} is {label}; give whole numbers from 0 on")
    return number
