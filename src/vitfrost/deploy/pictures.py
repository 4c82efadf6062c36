"""Pictures for an export: some to calibrate int8, others to compare the exported model with the original."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..images.batches import images_hash, take_usable
from ..images.given import ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..model import Model

Pixels = Float[ndarray, "_ 3 height width"]


def draw(loaded: Model, images: ImagesLike, calibration: int, checks: int, seed: int) -> tuple[Pixels, Pixels, dict[str, Any] | None]:
    """Normalized pixels to calibrate with and to compare with, a seeded draw, and the record of the former (None without any).

    Where the folder has too few, calibration comes first, and the last of its pictures serve to compare as well.
    """
    drawn = find_given(images).shuffled(seed)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), calibration + checks)
    pixels = batch.pixels.numpy()
    used = batch.positions[:calibration]
    record = {
        "images": len(used),
        "images_hash": images_hash(drawn, {position: batch.digests[position] for position in used}),
        "seed": seed,
        "skipped": len(batch.skipped),
    }
    return pixels[: len(used)], pixels[-checks:], record if used else None


def random_pixels(loaded: Model, count: int, seed: int) -> Pixels:
    """Normally distributed pixels, where there are no pictures to compare on."""
    return np.random.default_rng(seed).standard_normal((count, 3, *loaded.image_size), dtype=np.float32)
