"""The command `calibrate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from ..errors import VitfrostError
from .arguments import ArtifactOrNone, CropMode, CropShare, Device, Model, Size, Weights, one_of


def calibrate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    images: Path,
    out: Path,
    model: Model = None,
    weights: Weights = None,
    limit: int = 1000,
    seed: int = 0,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    batch_size: int = 16,
    maps: Literal["before", "after"] = "before",
    memory_limit: float = 4.0,
    sensitivity: bool = False,
    similarity: bool = False,
    device: Device = "cpu",
) -> None:
    """Measure the attention maps of a model or an artifact on images: entropy, mean, variance of every weight.

    Args:
        images: folder of pictures (class folders, a folder with labels.csv, or any folder).
        out: statistics file (.safetensors).
        limit: how many images, a seeded draw.
        seed: seed of the draw.
        batch_size: images per forward pass.
        maps: of a quantized artifact, the maps before or after its map quantizer.
        memory_limit: GB for counters; beyond it the images are passed several times.
        sensitivity: also measure how much the outputs depend on every weight (no labels needed; takes up to twice as long).
        similarity: also measure how alike the heads are, within layers and across them; a plan that hallucinates heads needs it.
    """
    from .. import calibrate as verb
    from ..distributed import rank

    if not (math.isfinite(memory_limit) and memory_limit > 0):
        raise VitfrostError(f"--memory-limit is {memory_limit}; give a number of GB above 0")
    found = verb(
        one_of(artifact, model), images, limit=limit, seed=seed, out=out, weights=weights, image_size=image_size, crop_pct=crop_pct,
        crop_mode=crop_mode, batch_size=batch_size, maps=maps, memory_limit=int(memory_limit * 1e9), sensitivity=sensitivity,
        similarity=similarity, device=device,
    )  # fmt: skip
    if rank() != 0:
        return
    header = found.header
    print(f"{out}: {len(found.sites)} sites, {header.images} images ({header.skipped} skipped), {header.precision}")
