"""The verb `evaluate` for models that give features: embeddings, or tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..class_names import class_space
from ..configs import Evaluate
from ..errors import VitfrostError
from ..images.classes import NUMBER, ClassSpace
from ..images.given import AnyImages, ImagesLike, find_given
from ..images.source import LABELS_FILE, class_folders, open_images
from ..model import Model
from .description import about_model
from .feature_outcomes import answers_of, figures_of, gallery_of, measure_features, share_of
from .results import Row
from .task_head import HeadLike, as_head

DEFAULTS = Evaluate()


def refuse_for_classes(name: str, config: Evaluate, gallery: ImagesLike | None, head: HeadLike | None) -> None:
    """Raise VitfrostError for what goes with features alone."""
    given = {"gallery": gallery is not None, "head": head is not None, "Evaluate.neighbors": config.neighbors != DEFAULTS.neighbors}
    for option, was in (given | {"Evaluate.threshold": config.threshold != DEFAULTS.threshold}).items():
        if was:
            raise VitfrostError(
                f"{option} goes with models that give features, and {name} gives classes; leave it out, or open it as an embedding"
            )


def evaluate_features(
    models: Mapping[str, Model],
    images: ImagesLike,
    *,
    reference: Model | None = None,
    labels: str | Path | None = None,
    config: Evaluate = DEFAULTS,
    progress: bool = True,
    gallery: ImagesLike | None = None,
    head: HeadLike | None = None,
) -> list[Row]:
    """`evaluate_many` for models that give features. Raises VitfrostError as that does."""
    everyone = [*models.values()]
    if reference is not None and not any(model is reference for model in everyone):
        everyone.append(reference)
    for loaded in everyone:
        if loaded.outputs == "classes":
            raise VitfrostError(f"{loaded.name} gives classes, {everyone[0].name} features; open both with the same outputs (--outputs)")
    if head is not None and reference is None:
        raise VitfrostError("a head's outputs are compared with those on a reference's features; give a reference")
    if head is None and config.threshold != DEFAULTS.threshold:
        raise VitfrostError("Evaluate.threshold is of a head's outputs; give a head, or leave it out")
    made = None if head is None else as_head(head)
    found, others = _opened(images, labels, gallery, need_labels=reference is None)
    drawn = found.subset(config.limit, config.seed)
    known = None if others is None else gallery_of(everyone, others, config.batch_size, progress)
    passed = measure_features(everyone, reference, drawn, config.batch_size, progress, head=made, threshold=config.threshold)
    labeled = len(passed.outcomes[0].labels) > 0
    if reference is None and not labeled:
        raise VitfrostError(f"the images of {found.root} have no labels and there is no reference; give labels or a reference model")
    answers = [
        answers_of(outcome, None if known is None else (known.vectors[number], known.labels), config.neighbors)
        for number, outcome in enumerate(passed.outcomes)
    ]
    aim = None if reference is None else next(each for each, loaded in zip(answers, everyone, strict=True) if loaded is reference)
    name_of_reference = None if reference is None else next((name for name, each in models.items() if each is reference), reference.name)
    rows = []
    for (name, loaded), outcome, own in zip(models.items(), passed.outcomes, answers, strict=False):
        compared: dict[str, object] = {}
        if aim is not None:
            compared["reference"] = name_of_reference
            compared["agreement"], compared["agreement_interval"] = share_of(own.nearest == aim.nearest)
        figures = figures_of(outcome, own, aim, known, config.neighbors, config.threshold)
        rows.append(Row(
            name=name, images=len(outcome.positions), images_hash=passed.images_hash, skipped=passed.skipped, labeled=labeled,
            seconds_per_image=float(np.median(outcome.seconds)), features=figures, **about_model(loaded), **compared,
        ))  # fmt: skip
    return rows


def _opened(
    images: ImagesLike, labels: str | Path | None, gallery: ImagesLike | None, need_labels: bool
) -> tuple[AnyImages, AnyImages | None]:
    """The images and the gallery, with labels that mean the same in both.

    Class folders of a model without classes are whatever their names are. Images may lack labels where there is a reference; the gallery
    needs some. Raises VitfrostError where labels are missing or unclear.
    """
    folders = [Path(each) for each in (images, gallery) if isinstance(each, str | Path)]
    space = label_space([folder for folder in folders if folder.is_dir()])
    if not isinstance(images, str | Path):
        if labels is not None:
            raise VitfrostError("labels in a file belong to a folder of images; give (tensor, label) pairs instead")
        found = find_given(images)
    elif (need_labels and gallery is None) or labels is not None or _has_labels(images):
        found = open_images(images, labels, need_labels=True, classes=space)
    else:
        found = open_images(images)
    if gallery is None:
        return found, None
    others = open_images(gallery, need_labels=True, classes=space) if isinstance(gallery, str | Path) else find_given(gallery)
    return found, others


def _has_labels(folder: str | Path) -> bool:
    return (Path(folder) / LABELS_FILE).is_file() or len(class_folders(folder)) > 1


def label_space(folders: list[Path]) -> ClassSpace | None:
    """What the names of class folders mean: synsets of ImageNet-1k are its classes, numbers are themselves, and other names are counted
    over all folders together. None where there are no class folders, so that labels are numbers in tables."""
    names = sorted({name for folder in folders for name in class_folders(folder)})
    if not names:
        return None
    imagenet = class_space(1000, None)
    if all(imagenet.synset(name) is not None for name in names):
        return imagenet
    if all(NUMBER.fullmatch(name) for name in names):
        return ClassSpace(max(map(int, names)) + 1)
    return ClassSpace.of(len(names), [[name] for name in names])
