"""The command `compress`."""

from __future__ import annotations

from pathlib import Path

from .arguments import ArtefactOrNone, CropMode, CropShare, Model, Size, Weights, one_of


def compress(
    artefact: ArtefactOrNone = None,
    /,
    *,
    plan: Path,
    out: Path,
    model: Model = None,
    weights: Weights = None,
    statistics: Path | None = None,
    images: Path | None = None,
    seed: int = 0,
    calibration_images: int = 32,
    compact_images: int = 256,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    overwrite: bool = False,
) -> None:
    """Apply a plan: hallucinate and compact in closed form, quantise with RepQ-ViT, freeze, and save an artefact (safetensors and JSON).

    Give the timm model that the plan was made for, or a trained artefact that the plan goes on from.

    Args:
        plan: file from `vitfrost plan`.
        out: artefact folder.
        statistics: the file that the plan was made from, where it freezes anything.
        images: folder from which the calibration images are drawn, where activations are quantised.
        seed: seed of that draw.
        calibration_images: how many are drawn for quantisation.
        compact_images: how many are drawn for compact blocks.
        overwrite: replace an existing folder.
    """
    from .. import compress as verb

    made = verb(
        one_of(artefact, model), plan, statistics=statistics, images=images, weights=weights, image_size=image_size,
        crop_pct=crop_pct, crop_mode=crop_mode, seed=seed, calibration_images=calibration_images, compact_images=compact_images,
        out=out, overwrite=overwrite,
    )  # fmt: skip
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
