"""The verb `evaluate`: accuracy of models on images, and what they share with a reference, as result rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..configs import Evaluate, expect, refuse_idle
from ..distributed import rank
from ..errors import VitfrostError
from ..files import refuse_unwritable, write_json
from ..images.classes import ClassSpace
from ..images.given import ImagesLike, find_given
from ..images.source import LABELS_FILE, ImageSet, open_images
from ..model import Model, ModelLike, as_model
from ..torch_state import usual_torch
from ..vit.outputs import chosen_outputs
from .description import about_model
from .evaluate_features import evaluate_features, refuse_for_classes
from .intervals import mean, paired_difference, share
from .label_hints import label_hint
from .outcomes import Measured, Outcomes, measure_outcomes
from .results import Interval, Row
from .task_head import HeadLike

log = logging.getLogger("vitfrost")


@usual_torch()
def evaluate(
    model: ModelLike,
    images: ImagesLike,
    *,
    reference: ModelLike | None = None,
    labels: str | Path | None = None,
    config: Evaluate = Evaluate(),
    name: str | None = None,
    json: str | Path | None = None,
    progress: bool = True,
    gallery: ImagesLike | None = None,
    head: HeadLike | None = None,
) -> Row:
    """Measure a model on images, against labels, a reference model, or both.

    `images`: a folder, or any iterable of tensors or (tensor, label) pairs (see images.given). `reference`: the model to compare with;
    one given by the same timm name is built for the same image size and sees the same pixels. An export runs by its own runtime.
    `labels`: a CSV for a folder without labels.csv. `name`: what the row calls the model. `json`: where to write the row, whose shares
    and intervals are in percent.
    A model that gives features (`Model.outputs`) is measured by their likeness to the reference's, by nearest neighbors, and with labels
    by prototypes and neighbors (see docs/features.md). `gallery`: labeled images that prototypes and neighbors are taken from, else from
    the other images. `head`: a callable on the map of patches [B, C, rows, columns], a TaskHead or an ONNX file, whose outputs on both
    models' features are compared. Under torchrun every process takes its share of the images and returns the row of the whole.
    Raises VitfrostError when there are neither labels nor a reference, or for anything unreadable or out of range.
    """
    expect(Evaluate, config, "config")
    refuse_idle(config)
    if json is not None:
        refuse_unwritable(json)
    loaded = as_model(model, exports=True)
    compared = None if reference is None else open_reference(reference, loaded)
    row = evaluate_beside(loaded, images, compared, labels=labels, config=config, name=name, progress=progress, gallery=gallery, head=head)[
        -1
    ]
    if json is not None and rank() == 0:
        write_json(json, row.model_dump(mode="json"))
    return row


def evaluate_beside(
    model: Model,
    images: ImagesLike,
    reference: Model | None,
    *,
    labels: str | Path | None = None,
    config: Evaluate = Evaluate(),
    name: str | None = None,
    progress: bool = True,
    gallery: ImagesLike | None = None,
    head: HeadLike | None = None,
) -> list[Row]:
    """The row of a model, after the row of its reference where there is one. Raises VitfrostError as `evaluate` does."""
    name = name or model.name
    models = {name: model}
    if reference is not None:
        label = reference.name if reference.name != name else f"{name} (reference)"
        models = {label: reference, name: model}
    rows = evaluate_many(models, images, labels=labels, reference=reference, config=config, progress=progress, gallery=gallery, head=head)
    return [*rows[:-1], rows[-1] if reference is None else rows[-1].model_copy(update={"reference": reference.name})]


@usual_torch()
def evaluate_many(
    models: Mapping[str, Model],
    images: ImagesLike,
    *,
    reference: str | Model | None = None,
    labels: str | Path | None = None,
    config: Evaluate = Evaluate(),
    progress: bool = True,
    gallery: ImagesLike | None = None,
    head: HeadLike | None = None,
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
    if any(loaded.outputs != "classes" for loaded in everyone):
        return evaluate_features(
            models, images, reference=reference, labels=labels, config=config, progress=progress, gallery=gallery, head=head
        )
    refuse_for_classes(everyone[0].name, config, gallery, head)
    classes = everyone[0].classes
    for loaded in everyone:
        if loaded.classes != classes or classes < 1:
            raise VitfrostError(
                f"{loaded.name} has {loaded.classes} classes, {everyone[0].name} has {classes}; give classifiers of the same classes"
            )
    if classes == 1:
        raise VitfrostError(f"{everyone[0].name} has one output, whose class is always the best; give a model with two outputs or more")
    if isinstance(images, str | Path):
        images = find_images(images, labels, everyone[0].class_space, reference is not None)
    elif labels is not None:
        raise VitfrostError("labels in a file belong to a folder of images; give (tensor, label) pairs instead")
    drawn = find_given(images).subset(config.limit, config.seed)
    measured = measure_outcomes(list(models.values()), reference, drawn, config.batch_size, progress)
    if rank() == 0:
        for (name, loaded), outcomes in zip(models.items(), measured.models, strict=True):
            if not loaded.weight_tag.startswith("random") and (hint := label_hint(outcomes.offset, loaded.classes)):
                log.warning("%s: %s", name, hint)
                break
    names = [name for name, loaded in models.items() if loaded is reference]
    reference_name = None if reference is None else (names[0] if names else reference.name)
    return [
        result_row(name, loaded, outcomes, measured, reference_name)
        for (name, loaded), outcomes in zip(models.items(), measured.models, strict=True)
    ]


def open_reference(reference: ModelLike, model: Model, **given: Any) -> Model:
    """The model to compare with; `given` are further arguments of `Model.open`.

    One given by the same timm name is built for the same image size and sees the same pixels as the model. Raises VitfrostError when it
    has other classes.
    """
    if isinstance(reference, str) and reference == model.name:
        features = model.outputs != "classes"
        options = {key: value for key, value in model.options.items() if key != "num_classes" or features}  # which the weights tell
        loaded = Model.open(reference, image_size=model.image_size, options=options, **given)
        loaded.preprocessing = model.preprocessing
        loaded.outputs = chosen_outputs(model.outputs, loaded.outputs, loaded.name, loaded.classes)
    else:
        loaded = Model.open(reference, **given) if given and isinstance(reference, str | Path) else as_model(reference, exports=True)
    if model.outputs == loaded.outputs == "classes" and loaded.classes != model.classes:
        raise VitfrostError(
            f"the reference {loaded.name} has {loaded.classes} classes, {model.name} has {model.classes}; they must have the same classes"
        )
    return loaded


def find_images(folder: str | Path, labels: str | Path | None, classes: ClassSpace | None, has_reference: bool) -> ImageSet:
    """Images with their labels; without labels only where a reference is there to compare with.

    A labels file is always read and must be right; folders that do not form classes then count as unlabeled.
    """
    if labels is not None or not has_reference or (Path(folder) / LABELS_FILE).is_file():
        return open_images(folder, labels, need_labels=True, classes=classes)
    try:
        return open_images(folder, need_labels=True, classes=classes)
    except VitfrostError as error:
        log.info("without labels: %s", error)
        return open_images(folder)


def result_row(name: str, loaded: Model, outcomes: Outcomes, measured: Measured, reference: str | None) -> Row:
    """The row of one measured model; `reference` is the name of the model that it was compared with."""
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
    seconds = float(np.median(outcomes.seconds))
    seen = {"images": images, "images_hash": measured.images_hash, "skipped": measured.skipped}
    return Row(name=name, labeled=labeled, seconds_per_image=seconds, **seen, **about_model(loaded), **found)


def _percent(successes: np.ndarray) -> tuple[float, Interval | None]:
    return share(int(successes.sum()), len(successes))
