"""timm's evaluation transform, split in two: resize and crop per image as uint8, normalise per batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ..errors import VitfrostError
from ..vit.compat import import_timm

CROP_MODES = ("center", "border", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Preprocess:
    """From an RGB picture to what the model reads; equal to timm's `create_transform(..., is_training=False)`.

    `config` is timm's data configuration: input_size (3, height, width), mean, std, crop_pct, crop_mode ("squash" with
    crop_pct 1 resizes straight to the input size), interpolation. Raises VitfrostError for values timm has no meaning for.

    One addition, `whole_squares` (false if not in the configuration): a square picture smaller than what the centre crop is cut
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
        import_timm()
        from timm.data import create_transform
        from timm.data.transforms import MaybePILToTensor

        options = {key: value for key, value in self._config.items() if key != "whole_squares"}

        def geometry(**changes: Any) -> list[Any]:
            transform = create_transform(**options | changes, is_training=False, normalize=False)
            return [step for step in transform.transforms if not isinstance(step, MaybePILToTensor)]

        self._geometry = geometry()
        self._whole = geometry(crop_mode="squash", crop_pct=1.0)
        self._mean = torch.tensor(self._config["mean"]).view(3, 1, 1)
        self._std = torch.tensor(self._config["std"]).view(3, 1, 1)

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
        """The configuration as plain JSON values, enough to build the same Preprocess again."""
        return {key: list(value) if isinstance(value, list) else value for key, value in self._config.items()}

    def resized_pixels(self, width: int, height: int) -> int:
        """Number of pixels of a picture after resizing and before cropping: what a very long, thin picture costs."""
        _, target_height, target_width = self._config["input_size"]
        resized_height, resized_width = (int(size / self._config["crop_pct"]) for size in (target_height, target_width))
        if self._config["crop_mode"] != "center":
            return resized_height * resized_width
        scale = max(resized_height / height, resized_width / width)
        return int(width * scale * height * scale)

    def _is_prepared(self, image: Image.Image) -> bool:
        _, height, width = self._config["input_size"]
        cut_from = int(min(height, width) / self._config["crop_pct"])
        return self._config["whole_squares"] and self._config["crop_mode"] == "center" and image.width == image.height < cut_from

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
        """Resize and crop an RGB picture; channels first."""
        for step in self._whole if self._is_prepared(image) else self._geometry:
            image = step(image)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalise(self, pixels: UInt8[np.ndarray, "images 3 height width"]) -> Float[Tensor, "images 3 height width"]:
        """(x / 255 - mean) / std; the result of an image does not depend on its batch."""
        return torch.from_numpy(pixels).to(torch.float32).div_(255).sub_(self._mean).div_(self._std)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The whole transform of one RGB picture."""
        return self.normalise(self.pixels(image)[None])[0]
