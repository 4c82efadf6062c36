"""The verb `evaluate`: accuracy of models on images, and what they share with a reference, as result rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed import rank
from ..errors import VitfrostError
from ..files import refuse_unwritable, write_json
from ..images.preprocess import Preprocess
from ..images.source import LABELS_FILE, ImageSet, open_images
from ..models import open_model, open_reference
from ..vit.load import LoadedModel
from .description import describe
from .intervals import mean, paired_difference, share
from .outcomes import Measured, Outcomes, measure_outcomes
from .results import Interval, Row, environment

BATCH_SIZE = 16


def evaluate(
    model: str | Path | LoadedModel,
    images: str | Path | ImageSet,
    *,
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    reference: str | Path | LoadedModel | None = None,
    reference_weights: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    json: str | Path | None = None,
    progress: bool = True,
    name: str | None = None,
    device: str | None = None,
) -> Row | None:
    """Measure a model on images, against labels, a reference model, or both.

    `model` and `reference`: a timm name (with `weights`, `reference_weights`), a LoadedModel, or the folder of an artifact or of an
    export, which runs by its own runtime on the CPU.
    `limit`: a draw of so many images by `seed`. `crop_pct` and `crop_mode` replace the preprocessing of both models.
    `device`: "cpu" or "cuda" (None: the CPU, or where a LoadedModel is).
    `json`: where to write the row. The row's shares and intervals are in percent. Under torchrun every process takes its
    share of the images; process 0 writes and returns the row of the whole, the others return None.
    Raises VitfrostError when there are neither labels nor a reference, or for anything unreadable or out of range.
    """
    if json is not None:
        refuse_unwritable(json)
    if reference is None and reference_weights is not None:
        raise VitfrostError("reference weights are given without a reference; name the reference model as well")
    loaded = open_model(model, weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode, device=device, exports=True)
    compared = None
    if reference is not None:
        compared = open_reference(reference, loaded, reference_weights, crop_pct=crop_pct, crop_mode=crop_mode, device=device, exports=True)
    row = evaluate_many(
        {name or loaded.name: loaded}, images, labels=labels, reference=compared,
        limit=limit, seed=seed, batch_size=batch_size, progress=progress,
    )[0]  # fmt: skip
    if rank() != 0:
        return None
    if json is not None:
        write_json(json, row.model_dump(mode="json"))
    return row


def evaluate_many(
    models: Mapping[str, LoadedModel],
    images: str | Path | ImageSet,
    *,
    reference: str | LoadedModel | None = None,
    labels: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> list[Row]:
    """Measure several models in one pass over the images; one row per model in the order of `models`.

    The reference is one of the models, by its name here, or another one; every model runs once. Raises VitfrostError as `evaluate` does.
    """
    if not models:
        raise VitfrostError("no model to evaluate; give at least one")
    if isinstance(reference, str):
        if reference not in models:
            raise VitfrostError(f"the reference '{reference}' is not one of the models {', '.join(models)}")
        reference = models[reference]
    everyone = [*models.values(), *([] if reference is None else [reference])]
    classes = everyone[0].classes
    for loaded in everyone:
        if loaded.classes != classes or classes < 1:
            raise VitfrostError(
                f"{loaded.name} has {loaded.classes} classes, {everyone[0].name} has {classes}; give classifiers of the same classes"
            )
    image_set = images if isinstance(images, ImageSet) else find_images(images, labels, classes, reference is not None)
    if image_set.labels is None and reference is None:
        raise VitfrostError(f"the images of {image_set.root} have no labels and there is no reference; give labels or a reference model")
    measured = measure_outcomes(list(models.values()), reference, image_set.subset(limit, seed), batch_size, progress)
    names = [name for name, loaded in models.items() if loaded is reference]
    reference_name = None if reference is None else (names[0] if names else reference.name)
    return [
        result_row(name, loaded, outcomes, measured, reference_name)
        for (name, loaded), outcomes in zip(models.items(), measured.models, strict=True)
    ]


def find_images(folder: str | Path, labels: str | Path | None, classes: int, has_reference: bool) -> ImageSet:
    """Images with their labels; without labels only where a reference is there to compare with.

    A labels file is always read and must be right; folders that do not form classes then count as unlabeled.
    """
    if labels is not None or not has_reference or (Path(folder) / LABELS_FILE).is_file():
        return open_images(folder, labels, need_labels=True, classes=classes)
    try:
        return open_images(folder, need_labels=True, classes=classes)
    except VitfrostError:
        return open_images(folder)


def result_row(name: str, loaded: LoadedModel, outcomes: Outcomes, measured: Measured, reference: str | None) -> Row:
    """The row of one measured model; `reference` is the name of the model that it was compared with."""
    about = describe(loaded)
    images = len(outcomes.positions)
    labeled = len(outcomes.correct1) > 0
    found: dict[str, Any] = {}
    if labeled:
        found["top1"], found["interval"] = _percent(outcomes.correct1)
        found["top5"], _ = _percent(outcomes.correct5)
    if measured.reference is not None:
        found["reference"] = reference
        found["agreement"], found["agreement_interval"] = _percent(outcomes.agrees)
        found["kl"], found["kl_interval"] = mean(outcomes.divergence)
        if labeled:
            value, interval = paired_difference(outcomes.correct1, measured.reference.correct1)
            found["top1_difference"] = {"value": value, "interval": interval}
    return Row(
        name=name,
        kind=about.kind,
        runtime=about.runtime,
        threads=about.threads,
        precision=about.precision,
        images=images,
        images_hash=measured.images_hash,
        skipped=measured.skipped,
        labeled=labeled,
        seeds=about.seeds,
        weight_tag=loaded.weight_tag,
        state_hash=loaded.state_hash,
        plan_hash=about.plan_hash,
        size_bytes=about.size_bytes,
        macs=about.macs,
        seconds_per_image=float(np.median(outcomes.seconds)),
        preprocessing=Preprocess(loaded.preprocessing).describe(),
        environment=environment(),
        **found,
    )


def _percent(successes: np.ndarray) -> tuple[float, Interval | None]:
    return share(int(successes.sum()), len(successes))
