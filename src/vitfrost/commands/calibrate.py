"""The command `calibrate`."""

from __future__ import annotations

from pathlib import Path

from ..configs import Calibrate
from .arguments import ArtifactOrNone, CropMode, CropShare, Device, Model, Size, Weights, one_of
from .flags import Given, Group, takes


@takes(Group.of(Calibrate))
def calibrate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    images: Path,
    out: Path,
    model: Model = None,
    weights: Weights = None,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    device: Device = "cpu",
) -> None:
    """Measure the attention maps of a model or an artifact on images: entropy, mean, variance of every weight.

    Args:
        images: folder of pictures (class folders, a folder with labels.csv, or any folder).
        out: statistics file (.safetensors).
    """
    config = given.config(Calibrate)
    from .. import calibrate as verb
    from ..distributed import rank

    found = verb(
        one_of(artifact, model), images, limit=config.limit, seed=config.seed, out=out, weights=weights, image_size=image_size,
        crop_pct=crop_pct, crop_mode=crop_mode, batch_size=config.batch_size, maps=config.maps,
        memory_limit=int(config.memory_limit * 1e9), sensitivity=config.sensitivity, similarity=config.similarity, device=device,
    )  # fmt: skip
    if rank() != 0:
        return
    header = found.header
    print(f"{out}: {len(found.sites)} sites, {header.images} images ({header.skipped} skipped), {header.precision}")
