"""One pass over the images: every model sees the same files batch by batch; what is kept is one line per image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..distributed import gather_objects, rank, shared_errors, world
from ..errors import VitfrostError
from ..images.batches import Batch, BatchLoader, images_hash, name_skipped
from ..images.decode import Decoded
from ..images.given import AnyImages
from ..images.preprocess import Preprocess
from ..images.preprocessing import Preprocessing
from ..model import Model
from ..progress import track
from .intervals import divergences

TOP = 5


@dataclass
class Outcomes:
    """What one model did on each image, in the order of the image set's positions. All vectors are as long as `positions`,
    or empty where labels (`correct1`, `correct5`, `offset`: predicted class less label) or a reference (`agrees`, `divergence` in nats)
    are missing.
    `seconds` is the time of an image's forward pass: its batch's time divided by the batch's images.
    """

    positions: ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    correct1: ndarray = field(default_factory=lambda: np.zeros(0, bool))
    correct5: ndarray = field(default_factory=lambda: np.zeros(0, bool))
    offset: ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    agrees: ndarray = field(default_factory=lambda: np.zeros(0, bool))
    divergence: ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass
class Measured:
    """Outcomes of the models (in their order) and of the reference, and which images they are about."""

    models: list[Outcomes]
    reference: Outcomes | None
    images_hash: str
    skipped: int


Done = TypeVar("Done")
Made = TypeVar("Made")
Measurement = Callable[[list[Batch]], list[Done]]
"""What every model did with its form of the same images, one outcome per model."""


@dataclass
class Passed(Generic[Done]):
    """The outcomes of models that saw the same images, in the order of the models, and which images they were."""

    outcomes: list[Done]
    images_hash: str
    skipped: int


@torch.inference_mode()
def measure_outcomes(
    models: list[Model],
    reference: Model | None,
    image_set: AnyImages,
    batch_size: int,
    progress: bool = True,
    *,
    text: str = "evaluate",
    kept: dict[int, Decoded] | None = None,
) -> Measured:
    """Run all models over the images in one pass; a model that is also the reference runs once.

    Images are decoded once for each distinct preprocessing; an image that is unusable for one model is skipped for all.
    `text` is what the progress says; `kept` keeps decoded images for further calls (see BatchLoader; one preprocessing only).
    Under torchrun every process takes its share of the batches and all of them return the outcome of the whole.
    Raises VitfrostError when no image is usable or a model's outputs are not finite.
    """
    everyone = models if reference is None or any(model is reference for model in models) else [*models, reference]

    def measure(batches: list[Batch]) -> list[Outcomes]:
        return _outcomes_of_batch(everyone, reference, batches, image_set)

    passed = pass_images(everyone, image_set, batch_size, measure, _joined, progress, text=text, kept=kept)
    by_identity = {id(loaded): outcomes for loaded, outcomes in zip(everyone, passed.outcomes, strict=True)}
    return Measured(
        models=[by_identity[id(model)] for model in models],
        reference=None if reference is None else by_identity[id(reference)],
        images_hash=passed.images_hash,
        skipped=passed.skipped,
    )


def pass_images(
    everyone: list[Model],
    image_set: AnyImages,
    batch_size: int,
    measure: Measurement[Done],
    joined: Callable[[list[Done]], Done],
    progress: bool = True,
    *,
    text: str = "evaluate",
    kept: dict[int, Decoded] | None = None,
) -> Passed[Done]:
    """Let the images pass once; `measure` gets each batch in every model's preprocessing, and `joined` makes one outcome of many.

    Raises VitfrostError as `measure_outcomes` does.
    """
    readings: list[Preprocessing] = []
    which: list[int] = []
    for loaded in everyone:
        if loaded.preprocessing not in readings:
            readings.append(loaded.preprocessing)
        which.append(readings.index(loaded.preprocessing))
    if len(readings) > 1:
        kept = None
    loaders = [BatchLoader(image_set, Preprocess(reading), batch_size, rank=rank(), world=world(), kept=kept) for reading in readings]
    parts: list[list[Done]] = [[] for _ in everyone]
    digests: dict[int, str] = {}
    with shared_errors():
        for batch in track(aligned(loaders, batch_size), loaders[0].expected, text, progress and rank() == 0):
            digests |= {position: batch[0].digests[position] for position in batch[0].positions}
            for part, outcomes in zip(parts, measure([batch[i] for i in which]), strict=True):
                part.append(outcomes)
    gathered = gather_objects(
        ([joined(part) for part in parts], digests, {p: why for loader in loaders for p, why in loader.skipped.items()})
    )
    digests = {position: digest for _, some, _ in gathered for position, digest in some.items()}
    skipped = {position: why for _, _, some in gathered for position, why in some.items()}
    if not digests:
        raise VitfrostError(f"none of the images of {image_set.root} is usable; give a folder with readable images")
    if rank() == 0:
        name_skipped(image_set, skipped, len(digests))
    whole = [joined([outcomes[index] for outcomes, _, _ in gathered]) for index in range(len(everyone))]
    return Passed(whole, images_hash(image_set, digests), len(skipped))


def aligned(loaders: list[BatchLoader], batch_size: int) -> Iterator[list[Batch]]:
    """The same images from loaders that differ in preprocessing: batches in step, reduced to images usable for all."""
    if len(loaders) == 1:
        for batch in loaders[0]:
            yield [batch]
        return
    iterators = [iter(loader) for loader in loaders]
    current = [next(iterator, None) for iterator in iterators]
    while all(batch is not None for batch in current):
        batches = [batch for batch in current if batch is not None]
        if any(batches[0].digests[p] != batch.digests[p] for batch in batches[1:] for p in batches[0].positions if p in batch.digests):
            raise VitfrostError(
                "the images came in another order, or changed, when they were read again; give a loader that does not shuffle"
            )
        numbers = [batch.positions[0] // batch_size for batch in batches]
        common = set.intersection(*(set(batch.positions) for batch in batches))
        if common:
            yield [_reduced(batch, common) for batch in batches]
        for index, number in enumerate(numbers):
            if number == min(numbers):
                current[index] = next(iterators[index], None)


def _reduced(batch: Batch, positions: set[int]) -> Batch:
    if len(positions) == len(batch.positions):
        return batch
    keep = [index for index, position in enumerate(batch.positions) if position in positions]
    labels = None if batch.labels is None else [batch.labels[index] for index in keep]
    return Batch(batch.pixels[keep], labels, [batch.positions[index] for index in keep], batch.digests, batch.skipped)


def _outcomes_of_batch(models: list[Model], reference: Model | None, batches: list[Batch], image_set: AnyImages) -> list[Outcomes]:
    """Outcomes of every model on its form of the same images."""
    if batches[0].labels is None and reference is None:
        raise VitfrostError(f"the images of {image_set.root} have no labels and there is no reference; give labels or a reference model")
    if batches[0].labels is not None and max(batches[0].labels) >= models[0].classes:
        raise VitfrostError(
            f"{image_set.root} have labels up to {max(batches[0].labels)}, but {models[0].name} has {models[0].classes} classes"
        )
    runs = [timed(loaded, batch.pixels) for loaded, batch in zip(models, batches, strict=True)]
    teacher = next((logits for loaded, (logits, _) in zip(models, runs, strict=True) if loaded is reference), None)
    for loaded, (logits, _) in zip(models, runs, strict=True):
        _check_finite(logits, loaded, batches[0], image_set)
    return [_outcomes(logits, teacher, batches[0], seconds) for logits, seconds in runs]


def timed(loaded: Model, pixels: Float[Tensor, "images 3 height width"]) -> tuple[Float[ndarray, "images classes"], float]:
    """Logits on the CPU and the seconds of the forward pass alone."""
    logits, seconds = time_of(loaded, lambda found: loaded(found), pixels)
    return logits.float().cpu().numpy(), seconds


def time_of(loaded: Model, run: Callable[[Tensor], Made], pixels: Float[Tensor, "images 3 height width"]) -> tuple[Made, float]:
    """What `run` makes of pixels on the model's device, and its seconds alone."""
    device = loaded.device
    pixels = pixels.to(device)
    _synchronize(device)
    start = time.perf_counter()
    found = run(pixels)
    _synchronize(device)
    return found, time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_finite(logits: Float[ndarray, "images classes"], loaded: Model, batch: Batch, image_set: AnyImages) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        file = image_set.name_of(batch.positions[int(bad[0])])
        raise VitfrostError(f"the outputs of {loaded.name} are not finite for {file}; check its weights and, if quantized, its calibration")


def _outcomes(
    logits: Float[ndarray, "images classes"], teacher: Float[ndarray, "images classes"] | None, batch: Batch, seconds: float
) -> Outcomes:
    outcomes = Outcomes(np.asarray(batch.positions), seconds=np.full(len(logits), seconds / len(logits)))
    best = logits.argmax(axis=1)
    if batch.labels is not None:
        labels = np.asarray(batch.labels)
        outcomes.correct1, outcomes.offset = best == labels, best - labels
        outcomes.correct5 = in_top(logits, labels, min(TOP, logits.shape[1]))
    if teacher is not None:
        outcomes.agrees = best == teacher.argmax(axis=1)
        outcomes.divergence = divergences(teacher, logits)
    return outcomes


def in_top(logits: Float[ndarray, "images classes"], labels: Int[ndarray, " images"], top: int) -> ndarray:
    """Whether fewer than `top` classes score higher than the label (of equal scores the lower class goes first)."""
    scores = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None] < labels[:, None]
    return ((logits > scores) | ((logits == scores) & earlier)).sum(axis=1) < top


def _joined(parts: list[Outcomes]) -> Outcomes:
    """Concatenate and order by position; parts of different processes give the same whole as one process."""
    if not parts:
        return Outcomes()
    vectors = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Outcomes)}
    order = np.argsort(vectors["positions"])
    return Outcomes(**{name: vector[order] if len(vector) else vector for name, vector in vectors.items()})
