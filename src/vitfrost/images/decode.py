"""One image file: its hash and its pixels as the model reads them, or the reason why it cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .geometry import Geometry


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [3, height, width] and the SHA-256 of the file's bytes, or None and "" with `reason` telling why the file is skipped.

    Images that are given in memory have normalized floats, and their `label` with them.
    """

    pixels: np.ndarray | None
    digest: str
    reason: str
    label: int | None = None


class _Unusable(Exception):
    pass


def decode_file(path: Path, preprocess: Geometry) -> Decoded:
    """Read, decode, convert to RGB, resize and crop one file; EXIF rotation is ignored, as in timm.

    Never raises for a bad file. Skipped: what cannot be read or decoded completely, pictures with more pixels than Pillow's
    limit against decompression bombs, and pictures so thin that resizing their short side would pass that limit.
    """
    try:
        if not path.is_file():
            raise _Unusable("no regular file")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file) as image:
                _refuse_huge(image, preprocess)
                return Decoded(preprocess.pixels(to_rgb(image)), digest, "")
    except Exception as error:  # Pillow's decoders raise many types; a bad file must not end the run
        return Decoded(None, "", _reason(error))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB: alpha is dropped, as in timm; of 16-bit gray the high byte is kept."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _refuse_huge(image: Image.Image, preprocess: Geometry) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if limit is not None and width * height > limit:
        raise _Unusable(f"{width} x {height} pixels are more than the limit of {limit}")
    if limit is not None and preprocess.resized_pixels(width, height) > limit:
        raise _Unusable(f"{width} x {height} pixels are too thin a picture: resized it would have more than {limit} pixels")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
