"""timm's evaluation transform, split in two: resize and crop per image as uint8, normalize per batch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .geometry import Geometry


class Preprocess(Geometry):
    """The same for torch: see Geometry, whose pixels and whose arithmetic it takes."""

    def normalize(self, pixels: UInt8[np.ndarray, "images 3 height width"]) -> Float[Tensor, "images 3 height width"]:
        """(x / 255 - mean) / std; the result of an image does not depend on its batch."""
        return torch.from_numpy(self.normalized(pixels))

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The whole transform of one RGB picture."""
        return self.normalize(self.pixels(image)[None])[0]
