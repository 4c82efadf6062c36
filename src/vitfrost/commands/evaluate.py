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
    gallery: Path | None = None,
    head: Path | None = None,
) -> None:
    """Measure accuracy with its interval; with a reference also agreement, KL and the paired difference. Of a model that gives features:
    cosine and relative error, agreement of nearest neighbors, and with labels accuracy by prototypes and neighbors.

    Args:
        images: class folders, or a folder with labels.csv; without labels a reference is needed.
        labels: CSV with the columns file and label, if not labels.csv in the folder.
        reference: timm name or artifact folder to compare with on the same images.
        reference_weights: weights of the reference; for an artifact, --weights is taken as well.
        json: write the result row to this file.
        gallery: of a model that gives features: labeled images that prototypes and neighbors are taken from, else the images themselves.
        head: of a model that gives features: an ONNX file that reads them (patches as a map, tokens, or the pooled vector).
    """
    config = given.config(Evaluate)
    from ..distributed import rank
    from ..evaluation.evaluate import evaluate_beside, open_reference
    from ..evaluation.results import format_rows
    from ..files import refuse_unwritable, write_json

    if json is not None:
        refuse_unwritable(json)

    if artifact is not None and model.weights is not None:
        if reference is None:
            raise VitfrostError("an artifact has its own weights; --weights goes with --model, or with --reference")
        model, reference_weights = replace(model, weights=None), reference_weights or model.weights
    if reference is None and reference_weights is not None:
        raise VitfrostError("reference weights are given without a reference; name the reference model as well")
    loaded = model.open(artifact, exports=True)
    crops = {"crop_pct": model.crop_pct, "crop_mode": model.crop_mode}
    compared = None if reference is None else open_reference(reference, loaded, weights=reference_weights, device=model.device, **crops)
    rows = evaluate_beside(loaded, images, compared, labels=labels, config=config, gallery=gallery, head=head)
    if rank() == 0:
        if json is not None:
            write_json(json, rows[-1].model_dump(mode="json"))
        show(format_rows(rows))
