"""One image file: its hash and its pixels as the model reads them, or the reason why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from ..errors import VitfrostError
from ..regular import NotRegular, open_regular
from .geometry import Geometry

MOST_PIXELS = 256_000_000  # phones make pictures of 200 million
LIMIT_VARIABLE = "VITFROST_MAX_PIXELS"
LINKS_VARIABLE = "VITFROST_FOLLOW_LINKS"
MOST_BYTES = 1 << 30
FEWEST_OF_16_BITS = 4096
_PILLOWS_LIMIT = 89_478_485
_SIGNATURES = {b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile, b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile}


@dataclass(frozen=True)
class Decoded:
    """Pixels uint8 [3, height, width] and the SHA-256 of the file's bytes, or None and "" with `reason` telling why the file is skipped.

    Images that are given in memory have normalized floats, and their `label` with them.
    """

    pixels: np.ndarray | None
    digest: str
    reason: str
    label: int | None = None


class UnusableFile(Exception):
    """Why a file is no picture that may be read."""


def decode_file(path: Path, preprocess: Geometry) -> Decoded:
    """Read, decode, convert to RGB, resize and crop one file; EXIF rotation is ignored, as in timm.

    Never raises for a bad file. Skipped: symbolic links, unless `follows_links`; what is no regular file (a device, a pipe, what the kernel
    makes up); what cannot be read or decoded completely; pictures with more pixels than the limit, and pictures so thin that resizing
    their short side would pass it.
    """
    try:
        content = read_regular(path)
        with open_picture(io.BytesIO(content), preprocess) as image:
            return Decoded(preprocess.pixels(to_rgb(image)), hashlib.sha256(content).hexdigest(), "")
    except Exception as error:  # Pillow's decoders raise many types; a bad file must not end the run
        return Decoded(None, "", _reason(error))


def follows_links() -> bool:
    """Whether symbolic links among pictures are followed: where VITFROST_FOLLOW_LINKS is set, to anything but 0."""
    return os.environ.get(LINKS_VARIABLE, "0") not in ("", "0")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; nothing that may block, or has no end, is opened.

    Raises UnusableFile for anything else, for symbolic links unless `follows_links`, and for more than 1 GB; OSError as `open` does.
    """
    if path.is_symlink() and not follows_links():
        raise UnusableFile(f"a symbolic link; set {LINKS_VARIABLE}=1 to follow links")
    try:
        with open_regular(path, follow=follows_links()) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise UnusableFile(f"larger than {MOST_BYTES >> 20} MB")
            return file.read(size)
    except NotRegular as error:
        raise UnusableFile("no regular file") from error


def limit_of_pixels() -> int | float:
    """How many pixels a picture may have: Pillow's own limit where somebody has changed it, else VITFROST_MAX_PIXELS or 256 million."""
    own = Image.MAX_IMAGE_PIXELS
    if own != _PILLOWS_LIMIT:
        return float("inf") if own is None else own
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) if given.isdigit() else MOST_PIXELS


def open_picture(file: io.BytesIO, preprocess: Geometry) -> Image.Image:
    """A picture that is not decoded yet. JPEG and PNG are opened without Pillow's own limit, which pictures of phones are beyond.

    Raises what Pillow raises, and an error for a picture that is too large.
    """
    start = file.read(8)
    file.seek(0)
    kind = next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), None)
    image = Image.open(file) if kind is None else kind(file)
    _refuse_huge(image, preprocess)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB: alpha is dropped, as in timm; of 16-bit gray the high byte is kept; floating-point gray runs
    from 0 to 1, or to 255 where a value is above 1. Of animations the first frame is taken. Raises VitfrostError for values out of
    range, and for 16-bit gray whose high byte holds next to nothing.
    """
    if image.mode == "RGB":
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # of which Pillow reads the high bytes
        image.load()
        if deep and all(high < FEWEST_OF_16_BITS >> 8 for _, high in image.getextrema()):  # type: ignore[misc, union-attr]
            raise VitfrostError("its colors of 16 bits hold next to nothing, so that it would be black; convert it to 8 bits")
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise VitfrostError("it has whole numbers outside of 0 to 65535; convert it to 8 or 16 bits")
        if values.size and 0 < values.max() < FEWEST_OF_16_BITS:  # 8 or 12 bits in the place of 16, most likely
            raise VitfrostError(f"its whole numbers go up to {values.max()} of 65535, so that it would be black; convert it to 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(_bytes_of_floats(np.asarray(image)))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def _bytes_of_floats(values: np.ndarray) -> np.ndarray:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not 0 <= low <= high <= 255:
        raise VitfrostError("it has floating-point numbers outside of 0 to 255; convert it to 8 bits")
    return (values * (255 if high <= 1 else 1)).round().astype(np.uint8)


def _refuse_huge(image: Image.Image, preprocess: Geometry) -> None:
    limit = limit_of_pixels()
    width, height = image.size
    if width * height > limit:
        raise UnusableFile(f"{width} x {height} pixels are more than the limit of {limit}; set {LIMIT_VARIABLE} to raise it")
    if preprocess.resized_pixels(width, height) > limit:
        raise UnusableFile(f"{width} x {height} pixels are too thin a picture: resized it would have more than {limit} pixels")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
