"""The command `evaluate`."""

from __future__ import annotations

from pathlib import Path

from ..configs import Evaluate
from ..errors import VitfrostError
from .arguments import ArtifactOrNone, CropMode, CropShare, Device, Model, Size, Weights, one_of, show
from .flags import Given, Group, takes


@takes(Group.of(Evaluate))
def evaluate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    images: Path,
    model: Model = None,
    weights: Weights = None,
    labels: Path | None = None,
    reference: str | None = None,
    reference_weights: Weights = None,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    device: Device = "cpu",
    json: Path | None = None,
) -> None:
    """Measure accuracy with its interval; with a reference also agreement, KL and the paired difference.

    Args:
        images: class folders, or a folder with labels.csv; without labels a reference is needed.
        labels: CSV with the columns file and label, if not labels.csv in the folder.
        reference: timm name or artifact folder to compare with on the same images.
        reference_weights: weights of the reference; for an artifact, --weights is taken as well.
        json: write the result row to this file.
    """
    config = given.config(Evaluate)
    from .. import evaluate as verb
    from ..evaluation.results import format_rows

    if artifact is not None and weights is not None:
        if reference is None:
            raise VitfrostError("an artifact has its own weights; --weights goes with --model, or with --reference")
        weights, reference_weights = None, reference_weights or weights
    row = verb(
        one_of(artifact, model), images, weights=weights, labels=labels, reference=reference, reference_weights=reference_weights,
        limit=config.limit, seed=config.seed, image_size=image_size, crop_pct=crop_pct, crop_mode=crop_mode, batch_size=config.batch_size,
        device=device, json=json,
    )  # fmt: skip
    if row is not None:
        show(format_rows([row]))
