"""timm's evaluation transform with NumPy and Pillow alone: resize and crop per picture, normalize per batch.

Free of torch, so that a program that only runs an exported model reads pictures bit for bit as the measurements did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import VitfrostError

CROP_MODES = ("center", "border", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Geometry:
    """From an RGB picture to what the model reads; equal to timm's `create_transform(..., is_training=False)`.

    `config` is timm's data configuration: input_size (3, height, width), mean, std, crop_pct, crop_mode ("squash" with
    crop_pct 1 resizes straight to the input size), interpolation. Raises VitfrostError for values timm has no meaning for.

    One addition, `whole_squares` (false if not in the configuration): a square picture smaller than what the center crop is cut
    from has been prepared for the model already; enlarging it only to cut its border off would undo that, so it is taken
    whole, resized straight to the input size.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config: dict[str, Any] = {
            "input_size": [int(size) for size in config["input_size"]],
            "mean": [float(value) for value in config["mean"]],
            "std": [float(value) for value in config["std"]],
            "crop_pct": float(config["crop_pct"]),
            "crop_mode": str(config["crop_mode"]),
            "interpolation": str(config["interpolation"]),
            "whole_squares": bool(config.get("whole_squares", False)),
        }
        self._check()
        self._resampling = Image.Resampling[self._config["interpolation"].upper()]
        self._mean, self._std = (np.asarray(self._config[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))

    def _check(self) -> None:
        config = self._config
        if len(config["input_size"]) != 3 or config["input_size"][0] != 3 or min(config["input_size"]) < 1:
            raise VitfrostError(f"the input size {config['input_size']} is not (3, height, width); only RGB models are supported")
        if not 0 < config["crop_pct"] <= 1:
            raise VitfrostError(f"crop_pct {config['crop_pct']} is out of range; give a number above 0 and at most 1")
        for key, known in (("crop_mode", CROP_MODES), ("interpolation", INTERPOLATIONS)):
            if config[key] not in known:
                raise VitfrostError(f"{key} '{config[key]}' is unknown; choose one of {', '.join(known)}")

    def describe(self) -> dict[str, Any]:
        """The configuration as plain JSON values, enough to build the same again."""
        return {key: list(value) if isinstance(value, list) else value for key, value in self._config.items()}

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of what the model reads."""
        _, height, width = self._config["input_size"]
        return height, width

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a picture after resizing and before cropping."""
        target_height, target_width = (math.floor(size / self._config["crop_pct"]) for size in self.input_size)
        if self._config["crop_mode"] == "squash":
            return target_width, target_height
        if self._config["crop_mode"] == "center" and target_height == target_width:  # torchvision's rule for the shorter side
            if width <= height:
                return target_width, int(target_width * height / width)
            return int(target_width * width / height), target_width
        ratios = (height / target_height, width / target_width)
        ratio = max(ratios) if self._config["crop_mode"] == "border" else min(ratios)
        return round(width / ratio), round(height / ratio)

    def resized_pixels(self, width: int, height: int) -> int:
        """Number of pixels of a picture after resizing and before cropping: what a very long, thin picture costs."""
        resized_width, resized_height = self.resized(width, height)
        return resized_width * resized_height

    def _is_prepared(self, image: Image.Image) -> bool:
        cut_from = int(min(self.input_size) / self._config["crop_pct"])
        return self._config["whole_squares"] and self._config["crop_mode"] == "center" and image.width == image.height < cut_from

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB picture: uint8 [3, height, width]."""
        height, width = self.input_size
        if self._is_prepared(image):
            image = image.resize((width, height), self._resampling)
        else:
            image = image.resize(self.resized(*image.size), self._resampling)
            fill = tuple(round(255 * value) for value in self._config["mean"]) if self._config["crop_mode"] == "border" else 0
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
