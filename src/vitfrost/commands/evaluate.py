"""The command `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..configs import Evaluate
from ..errors import VitfrostError
from .arguments import ArtifactOrNone, Flags, ModelFlags, Weights, show
from .flags import Given, Group, takes


@takes(Group.of(Evaluate))
def evaluate(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    images: Path,
    model: Flags = ModelFlags(),
    labels: Path | None = None,
    reference: str | None = None,
    reference_weights: Weights = None,
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
    from ..distributed import rank
    from ..evaluation.evaluate import open_reference
    from ..evaluation.results import format_rows

    if artifact is not None and model.weights is not None:
        if reference is None:
            raise VitfrostError("an artifact has its own weights; --weights goes with --model, or with --reference")
        model, reference_weights = replace(model, weights=None), reference_weights or model.weights
    if reference is None and reference_weights is not None:
        raise VitfrostError("reference weights are given without a reference; name the reference model as well")
    loaded = model.open(artifact, exports=True)
    crops = {"crop_pct": model.crop_pct, "crop_mode": model.crop_mode}
    compared = None if reference is None else open_reference(reference, loaded, weights=reference_weights, device=model.device, **crops)
    row = verb(loaded, images, labels=labels, reference=compared, config=config, json=json)
    if rank() == 0:
        show(format_rows([row]))
