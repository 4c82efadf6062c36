"""The command `compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .arguments import ArtifactOrNone, Flags, ModelFlags


def compress(
    artifact: ArtifactOrNone = None,
    /,
    *,
    plan: Path,
    out: Path,
    model: Flags = ModelFlags(),
    statistics: Path | None = None,
    images: Path | None = None,
    seed: int = 0,
    calibration_images: int = 32,
    compact_images: int = 256,
    repair: Literal["ridge", "bias"] | None = None,
    repair_images: int = 300,
    repair_penalty: float | None = None,
    overwrite: bool = False,
) -> None:
    """Apply a plan: hallucinate and compact in closed form, repair, quantize with RepQ-ViT, freeze; save an artifact (safetensors, JSON).

    Give the timm model that the plan was made for, or a trained artifact that the plan goes on from.

    Args:
        plan: file from `vitfrost plan`.
        out: artifact folder.
        statistics: the file that the plan was made from, where it freezes anything.
        images: folder from which images are drawn, where activations are quantized, blocks compacted, or the model repaired.
        seed: seed of that draw.
        calibration_images: how many are drawn for quantization.
        compact_images: how many are drawn for compact blocks.
        repair: re-fit output projections and second feed-forward projections to the original's residual stream by ridge regression,
            or their biases only.
        repair_images: how many images are drawn for that; they need no labels.
        repair_penalty: holds the weights to what they were, relative to the mean variance of an input.
        overwrite: replace an existing folder.
    """
    from .. import compress as verb

    made = verb(
        model.open(artifact), plan, statistics=statistics, images=images, seed=seed,
        calibration_images=calibration_images, compact_images=compact_images,
        repair=repair, repair_images=repair_images, repair_penalty=repair_penalty, progress=True, out=out, overwrite=overwrite,
    )  # fmt: skip
    if made.repair is not None:
        name, left = list(made.repair["layers"].items())[-1]
        print(
            f"{len(made.repair['layers'])} layers repaired on {made.repair['images']} images; share of the stream's variance that is "
            f"missed at {name}: {left['before']:.4f} -> {left['after']:.4f}"
        )
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")
