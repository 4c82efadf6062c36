"""timm's evaluation transform with NumPy and Pillow alone: resize and crop per picture, normalize per batch.

Free of torch, so that a program that only runs an exported model reads pictures bit for bit as the measurements did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .preprocessing import Preprocessing


class Geometry:
    """From an RGB picture to what the model reads; equal to timm's `create_transform(..., is_training=False)`, but for `whole_squares`.

    `config`: a Preprocessing, or the same as a mapping.
    """

    def __init__(self, config: Preprocessing | Mapping[str, Any]):
        self.config = config if isinstance(config, Preprocessing) else Preprocessing.from_plain(config)
        self._resampling = Image.Resampling[self.config.interpolation.upper()]
        self._mean, self._std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (self.config.mean, self.config.std))

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of what the model reads."""
        _, height, width = self.config.input_size
        return height, width

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture after resizing and before cropping."""
        target_height, target_width = (math.floor(size / self.config.crop_pct) for size in self.input_size)
        if self.config.crop_mode == "squash":
            return target_width, target_height
        if self.config.crop_mode == "center" and target_height == target_width:  # torchvision's rule for the shorter side
            if width <= height:
                return target_width, int(target_width * height / width)
            return int(target_width * width / height), target_width
        ratios = (height / target_height, width / target_width)
        ratio = max(ratios) if self.config.crop_mode == "border" else min(ratios)
        return round(width / ratio), round(height / ratio)

    def resized_pixels(self, width: int, height: int) -> int:
        """Number of pixels of a picture after resizing and before cropping: what a very long, thin picture costs."""
        resized_width, resized_height = self.resized(width, height)
        return resized_width * resized_height

    def _is_prepared(self, image: Image.Image) -> bool:
        cut_from = int(min(self.input_size) / self.config.crop_pct)
        return self.config.whole_squares and self.config.crop_mode == "center" and image.width == image.height < cut_from

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB picture: uint8 [3, height, width]."""
        height, width = self.input_size
        if self._is_prepared(image):
            image = image.resize((width, height), self._resampling)
        else:
            image = image.resize(self.resized(*image.size), self._resampling)
            fill = tuple(round(255 * value) for value in self.config.mean) if self.config.crop_mode == "border" else 0
            image = _center(image, width, height, fill)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """(x / 255 - mean) / std of uint8 [..., 3, height, width], as float32; a picture's result does not depend on its batch."""
        result = pixels.astype(np.float32)
        result /= np.float32(255)
        result -= self._mean
        result /= self._std
        return result


def _center(image: Image.Image, width: int, height: int, fill: tuple[int, ...] | int) -> Image.Image:
    """Cut the middle out; where the picture is smaller, pad it first (the odd pixel goes right and below)."""
    wide, high = max(width - image.width, 0), max(height - image.height, 0)
    if wide or high:
        image = ImageOps.expand(image, (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2), fill)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
