"""Evaluation during and after training: labeled pictures as `vitfrost evaluate` reads them, decoded once and kept."""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ..distributed import gather_objects, rank, world
from ..errors import VitfrostError
from ..evaluation.description import device_of
from ..evaluation.outcomes import TOP, Outcomes, in_top
from ..files import sha256_of_file
from ..images.batches import decode_in_order, images_hash, name_skipped
from ..images.classes import ClassSpace
from ..images.preprocess import Preprocess
from ..images.preprocessing import Preprocessing
from ..images.source import ImageSet, open_images
from ..progress import track
from .packs import Pack
from .recipe import SourcePart

BATCH = 128


@dataclass
class EvaluationImages:
    """Labeled pictures after the model's resize and crop. `digest` is over the files that are used, as in a result row."""

    pixels: UInt8[Tensor, "images 3 height width"]
    labels: Int64[np.ndarray, " images"]
    digest: str
    skipped: int
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]


def open_evaluation(part: SourcePart, preprocessing: Preprocessing, classes: ClassSpace, threads: int, progress: bool) -> EvaluationImages:
    """Decode a folder or a pack with the model's own preprocessing.

    Raises VitfrostError for a source without labels or with more classes than the model, and where no picture is usable.
    """
    path = Path(part.source)
    if part.labels == "none":
        raise VitfrostError("data.evaluation.labels is 'none', but accuracy needs labels; leave it out, or name labeled pictures")
    is_pack = path.suffix == ".npz"
    if not is_pack and part.split != "all":
        raise VitfrostError(f"the folder {path} has no split {part.split}; name the folder of that split and leave the split out")
    if is_pack:
        every: ImageSet = Pack.open(path).images(part.split, part.labels == "imagenet")
    else:
        every = open_images(path, need_labels=True, classes=classes)
    image_set = every.subset(part.limit, part.seed)
    pixels, labels, digests, unusable = [], [], {}, {}
    count = len(image_set)
    assert image_set.labels is not None
    with closing(decode_in_order(image_set, Preprocess(preprocessing), range(count), threads, 4 * threads)) as decoded:
        for position, image in track(decoded, count, f"decoding {path.name}", progress and rank() == 0):
            if image.pixels is None:
                unusable[position] = image.reason
            else:
                pixels.append(image.pixels)
                labels.append(image_set.labels[position])
                digests[position] = image.digest
    name_skipped(image_set, unusable, len(pixels))
    if not pixels:
        raise VitfrostError(f"none of the pictures of {path} is usable; give others for the evaluation")
    if max(labels) >= classes.count:
        raise VitfrostError(f"the evaluation pictures {path} have labels up to {max(labels)}, the model has {classes.count} classes")
    digest = images_hash(image_set, digests)
    if is_pack:
        positions = [int(name) for name in image_set.files]
        digest = hashlib.sha256(f"{sha256_of_file(path)} {part.labels} {positions}".encode()).hexdigest()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    stacked, kept = torch.from_numpy(np.stack(pixels)), np.asarray(labels, np.int64)
    return EvaluationImages(stacked, kept, digest, count - len(pixels), mean, std)


@torch.inference_mode()
def outcomes_of(model: nn.Module, images: EvaluationImages, batch: int = BATCH) -> Outcomes:
    """What the model (in evaluation mode, float32) gets right; the processes share the batches and all return the whole.

    Raises VitfrostError where an output is not finite.
    """
    device = device_of(model)
    training = model.training
    model.eval()
    mean, std = images.mean.to(device), images.std.to(device)
    logits, seconds, positions = [], [], []
    for start in range(rank() * batch, len(images.labels), world() * batch):
        pixels = images.pixels[start : start + batch].to(device).float().div_(255).sub_(mean).div_(std)
        began = time.perf_counter()
        logits.append(model(pixels).float().cpu().numpy())
        seconds.append(np.full(len(pixels), (time.perf_counter() - began) / len(pixels)))
        positions.append(np.arange(start, start + len(pixels)))
    model.train(training)
    parts = [part for some in gather_objects(list(zip(positions, logits, seconds, strict=True))) for part in some]
    parts.sort(key=lambda part: int(part[0][0]))
    scores = np.concatenate([part[1] for part in parts])
    if not np.isfinite(scores).all():
        raise VitfrostError("the outputs of the trained model are not finite; lower optimizer.lr, or set optimizer.clip")
    return Outcomes(
        positions=np.concatenate([part[0] for part in parts]),
        correct1=scores.argmax(1) == images.labels,
        correct5=in_top(scores, images.labels, min(TOP, scores.shape[1])),
        seconds=np.concatenate([part[2] for part in parts]),
    )
