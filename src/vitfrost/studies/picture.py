"""One picture as the model sees it, and the maps of the model's last attention layer on it (figure 1 of EAM)."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from ..errors import VitfrostError
from ..files import atomic_file
from ..images.batches import take_usable
from ..images.preprocess import Preprocess
from ..images.source import open_images
from ..model import Model
from ..records import parse
from ..vit.families import has_class_token, install_map_attention

_METADATA_KEY = "vitfrost.picture"


@dataclass(frozen=True)
class PictureHeader:
    """What the picture and the maps are. `grid`, `prefix_tokens` and `shift` are those of the attention site (see AttentionSite)."""

    file: str
    site: str
    layer: int
    class_token: bool
    prefix_tokens: int
    grid: tuple[int, int]
    shift: tuple[int, int]
    state_hash: str


@dataclass(frozen=True, eq=False)
class MappedPicture:
    """A picture and the softmax maps of the last attention layer on it."""

    header: PictureHeader
    pixels: UInt8[np.ndarray, "height width 3"]
    maps: Float32[np.ndarray, "windows heads queries keys"]


def take_picture(loaded: Model, images: str | Path, out: Path, seed: int = 0) -> Path:
    """Draw one usable picture by `seed`, run the model on it, and write both as one safetensors file, whose path is returned.

    `pixels` uint8 [height, width, 3] is what is left of the picture after resizing and cropping; `maps` float32 [windows,
    heads, queries, keys] are the last layer's, before any quantizer. Equal inputs give equal bytes; the model is not changed.
    Raises VitfrostError for a folder without usable images and for a place that cannot be written.
    """
    from safetensors.numpy import save

    image_set = open_images(images)
    preprocess = Preprocess(loaded.preprocessing)
    batch = take_usable(image_set.subset(len(image_set), seed), preprocess, 1)
    file = image_set.subset(len(image_set), seed).files[batch.positions[0]]
    model = copy.deepcopy(loaded.module).eval().cpu()
    site, attention = list(install_map_attention(model).items())[-1]
    seen: list[Tensor] = []
    attention.observe(lambda maps, values: seen.append(maps))
    with torch.inference_mode():
        model(batch.pixels)
    header = PictureHeader(
        file, site, attention.site.index + 1, has_class_token(model), attention.site.prefix_tokens,
        attention.site.grid, attention.site.shift, loaded.state_hash,
    )  # fmt: skip
    tensors = {
        "pixels": np.ascontiguousarray(_as_bytes(batch.pixels[0], preprocess).transpose(1, 2, 0)),
        "maps": seen[0].reshape(attention.site.maps_shape).to(torch.float32).contiguous().numpy(),
    }
    with atomic_file(out) as temporary:
        temporary.write_bytes(save(tensors, metadata={_METADATA_KEY: json.dumps(asdict(header), sort_keys=True)}))
    return Path(out)


def _as_bytes(pixels: Tensor, preprocess: Preprocess) -> UInt8[np.ndarray, "3 height width"]:
    """The inverse of `Preprocess.normalize` for one image, exact."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.config.mean, preprocess.config.std))
    return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def load_picture(path: str | Path) -> MappedPicture:
    """Read what `take_picture` wrote. Raises VitfrostError for a file that is missing, truncated, foreign or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), framework="numpy") as file:
            about = parse((file.metadata() or {})[_METADATA_KEY], "JSON", f"the header of {path}")
            pixels, maps = file.get_tensor("pixels"), file.get_tensor("maps")
        header = PictureHeader(**about | {"grid": tuple(about["grid"]), "shift": tuple(about["shift"])})
        keys = header.prefix_tokens + header.grid[0] * header.grid[1]
        if maps.ndim != 4 or maps.shape[3] != keys or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError("its arrays do not fit each other")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise VitfrostError(f"{path} is no readable picture of a grid ({error}); remove it and resume the run") from error
    return MappedPicture(header, pixels, maps.astype(np.float32, copy=False))
