"""What models that give features did on the same images, and the result row of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from ..errors import VitfrostError
from ..images.batches import Batch
from ..images.given import AnyImages
from ..methods.output_distance import distances
from ..model import Model
from .features import PARTS, Features, cosines, features_of
from .intervals import Estimate, mean, mean_likeness, paired_difference, share
from .outcomes import Passed, pass_images, time_of
from .results import Accuracy, Difference, FeatureFigures, HeadFigures, Likeness
from .retrieval import by_neighbors, by_prototype, has_company, nearest, unit_rows
from .task_head import TaskHead, absolute_errors, intersections_over_union

NUMBERS = np.zeros(0)


@dataclass
class FeatureOutcomes:
    """What one model did, image by image. `vectors`: unit rows that images are compared by, which are its `vector_name`.

    `cosines` and `errors` (relative, squared) to the reference by part, `absolute` errors and `overlaps` of the head's outputs.
    Empty where labels, the reference or the head are missing.
    """

    positions: ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    vector_name: str = ""
    vectors: ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    labels: ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: ndarray = field(default_factory=lambda: NUMBERS)
    cosines: dict[str, ndarray] = field(default_factory=dict)
    errors: dict[str, ndarray] = field(default_factory=dict)
    absolute: ndarray = field(default_factory=lambda: NUMBERS)
    overlaps: ndarray = field(default_factory=lambda: NUMBERS)


@dataclass(frozen=True)
class Gallery:
    """Labeled images that others are told by: every model's vectors of them, in the order of the models, and their labels."""

    vectors: list[ndarray]
    labels: ndarray
    images_hash: str


@torch.inference_mode()
def measure_features(
    everyone: list[Model],
    reference: Model | None,
    image_set: AnyImages,
    batch_size: int,
    progress: bool = True,
    *,
    head: TaskHead | None = None,
    threshold: float = 0.5,
    text: str = "evaluate",
) -> Passed[FeatureOutcomes]:
    """Run all models, one of which is the reference, over the images in one pass. Raises VitfrostError as `outcomes.measure_outcomes`, and
    for features that cannot be compared."""

    def measure(batches: list[Batch]) -> list[FeatureOutcomes]:
        runs = [time_of(loaded, _run(loaded), batch.pixels) for loaded, batch in zip(everyone, batches, strict=True)]
        found = [features.cpu() for features, _ in runs]
        for loaded, features in zip(everyone, found, strict=True):
            _check_finite(features, loaded, batches[0], image_set)
        aim = next((features for loaded, features in zip(everyone, found, strict=True) if loaded is reference), None)
        aimed = None if head is None or aim is None or reference is None else head.of(aim, reference.name)
        made = []
        for loaded, features, (_, seconds) in zip(everyone, found, runs, strict=True):
            outcome = _outcome(features, batches[0], seconds)
            if aim is not None and reference is not None:
                _compare(outcome, features, aim, (loaded.name, reference.name))
            if head is not None and aimed is not None:
                drawn = aimed if features is aim else head.of(features, loaded.name)
                outcome.absolute = absolute_errors(aimed, drawn).numpy()
                outcome.overlaps = intersections_over_union(aimed, drawn, threshold).numpy()
            made.append(outcome)
        return made

    return pass_images(everyone, image_set, batch_size, measure, _joined, progress, text=text)


def _run(loaded: Model) -> Any:
    return lambda pixels: features_of(loaded, pixels)


def _check_finite(features: Features, loaded: Model, batch: Batch, image_set: AnyImages) -> None:
    whole = [part.flatten(1) for part in (features.pooled, features.tokens) if part is not None]
    bad = (~torch.isfinite(torch.cat(whole, 1)).all(1)).nonzero().flatten().tolist()
    if bad:
        file = image_set.name_of(batch.positions[bad[0]])
        raise VitfrostError(
            f"the features of {loaded.name} are not finite for {file}; check its weights and, if quantized, its calibration"
        )


def _outcome(features: Features, batch: Batch, seconds: float) -> FeatureOutcomes:
    name, vectors = features.vector
    labels = np.zeros(0, np.int64) if batch.labels is None else np.asarray(batch.labels, np.int64)
    times = np.full(len(vectors), seconds / len(vectors))
    return FeatureOutcomes(np.asarray(batch.positions), name, unit_rows(vectors.numpy()), labels, times)


def _compare(outcome: FeatureOutcomes, features: Features, aim: Features, names: tuple[str, str]) -> None:
    """Put the likeness of all parts that both models give into the outcome."""
    for part in PARTS:
        own, other = getattr(features, part), getattr(aim, part)
        if own is None or other is None:
            continue
        if own.shape != other.shape:
            raise VitfrostError(
                f"the {part.replace('_', ' ')} of {names[0]} is {list(own.shape[1:])} for an image, that of {names[1]} "
                f"{list(other.shape[1:])}; they must be alike"
            )
        outcome.cosines[part] = cosines(other, own).numpy()
        outcome.errors[part] = distances("embedding", other.double(), own.double()).numpy()
    if not outcome.cosines:
        raise VitfrostError(f"{names[0]} and {names[1]} give different features, one vector and tokens; open both with the same outputs")


def _joined(parts: list[FeatureOutcomes]) -> FeatureOutcomes:
    """Concatenate and order by position; parts of different processes give the same whole as one process."""
    parts = [part for part in parts if len(part.positions)]
    if not parts:
        return FeatureOutcomes()
    order = np.argsort(np.concatenate([part.positions for part in parts]))

    def join(values: Sequence[ndarray]) -> ndarray:
        whole = np.concatenate(values)
        return whole[order] if len(whole) else whole

    def join_by_part(name: str) -> dict[str, ndarray]:
        return {key: join([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    whole = FeatureOutcomes(vector_name=parts[0].vector_name, cosines=join_by_part("cosines"), errors=join_by_part("errors"))
    for name in ("positions", "vectors", "labels", "seconds", "absolute", "overlaps"):
        setattr(whole, name, join([getattr(part, name) for part in parts]))
    return whole


@dataclass(frozen=True)
class Answers:
    """What a model takes every image for: the nearest other image (or one of the gallery), its class by prototypes and by neighbors."""

    nearest: ndarray
    prototype: ndarray | None = None
    neighbors: ndarray | None = None


def answers_of(outcome: FeatureOutcomes, gallery: tuple[ndarray, ndarray] | None, count: int) -> Answers:
    """Every model is asked in its own space: queries and gallery are its own vectors. `count`: of neighbors that vote."""
    vectors = outcome.vectors
    others, labels = gallery or (None, outcome.labels)
    found = nearest(vectors, others)
    if not len(labels):
        return Answers(found)
    return Answers(found, by_prototype(vectors, labels, others), by_neighbors(vectors, labels, count, others))


def figures_of(
    outcome: FeatureOutcomes, own: Answers, aim: Answers | None, gallery: Gallery | None, count: int, threshold: float
) -> FeatureFigures:
    """The figures of one model with their intervals; `aim` are the reference's answers on the same images."""
    about: dict[str, Any] = {}
    told = has_company(outcome.labels, None if gallery is None else gallery.labels) if len(outcome.labels) else np.zeros(0, bool)
    if told.any():
        about["told"] = int(told.sum())
        for name in ("prototype", "neighbors"):
            about[name] = _accuracy(outcome.labels, getattr(own, name), None if aim is None else getattr(aim, name), told)
    if aim is not None and own.prototype is not None:
        about["prototype_agreement"], about["prototype_agreement_interval"] = share_of(own.prototype == aim.prototype)
    if len(outcome.absolute):
        error, error_interval = mean(outcome.absolute)
        overlap, overlap_interval = mean_likeness(outcome.overlaps)
        about["head"] = HeadFigures(
            absolute_error=error, absolute_error_interval=error_interval, overlap=overlap, overlap_interval=overlap_interval,
            threshold=threshold,
        )  # fmt: skip
    return FeatureFigures(
        vector=outcome.vector_name,
        likeness=_likeness(outcome.cosines, outcome.errors),
        voters=count if own.neighbors is not None else None,
        gallery_images=None if gallery is None else len(gallery.labels),
        gallery_hash=None if gallery is None else gallery.images_hash,
        **about,
    )


def _likeness(likeness: Mapping[str, ndarray], errors: Mapping[str, ndarray]) -> dict[str, Likeness]:
    made = {}
    for part, values in likeness.items():
        cosine, cosine_interval = mean_likeness(values)
        error, error_interval = mean(errors[part])
        made[part] = Likeness(cosine=cosine, cosine_interval=cosine_interval, relative_error=error, relative_error_interval=error_interval)
    return made


def _accuracy(labels: ndarray, found: ndarray, aim: ndarray | None, told: ndarray) -> Accuracy:
    """Of the images that can be told; where there is a reference, the paired difference too."""
    right = (found == labels)[told]
    value, interval = share_of(right)
    difference = None
    if aim is not None:
        change, bounds = paired_difference(right, (aim == labels)[told])
        assert bounds is not None
        difference = Difference(value=change, interval=bounds)
    return Accuracy(value=value, interval=interval, difference=difference)


def share_of(successes: ndarray) -> Estimate:
    """Percentage of true values, with its interval."""
    return share(int(successes.sum()), len(successes))


def gallery_of(everyone: list[Model], images: AnyImages, batch_size: int, progress: bool) -> Gallery:
    """Every model's vectors of the gallery. Raises VitfrostError for images without labels."""
    passed = measure_features(everyone, None, images, batch_size, progress, text="evaluate: gallery")
    labels = passed.outcomes[0].labels
    if not len(labels):
        raise VitfrostError(
            f"the gallery {images.root} has no labels, which prototypes and neighbors need; give class folders or labels.csv"
        )
    return Gallery([outcome.vectors for outcome in passed.outcomes], labels, passed.images_hash)
