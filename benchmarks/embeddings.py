"""Embeddings of pictures by a model and by changed ones, kept in a folder, and what they have in common.

The prototypes are the original's: the mean vectors of labeled images, as an index of vectors or of texts stays what it is when only the
model that asks it is changed. Every picture is embedded once by every model, so draws may grow and runs be stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from vitfrost.evaluation.description import about_model
from vitfrost.evaluation.features import features_of
from vitfrost.evaluation.intervals import Estimate, mean, mean_likeness, paired_difference, share
from vitfrost.evaluation.retrieval import by_prototype, has_company, unit_rows
from vitfrost.files import read_json, write_json
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import ImageSet
from vitfrost.model import Model

BATCH = 16


def products(bf16: bool) -> Any:
    """Within it, products are in bfloat16 where they are wanted so."""
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


class Embeddings:
    """Vectors [images, channels] of `images`, by the title of the model that made them; those of `gallery` are the original's."""

    def __init__(self, folder: Path, original: Model, images: ImageSet, gallery: ImageSet | None, bf16: bool):
        self.folder, self.original, self.images, self.gallery, self.bf16 = folder, original, images, gallery, bf16
        self.folder.mkdir(parents=True, exist_ok=True)
        self.aim = self.made("original", lambda: original, images)
        self.known = None if gallery is None else self.made("gallery", lambda: original, gallery)

    def made(self, title: str, make: Callable[[], Model], images: ImageSet) -> Float[ndarray, "images channels"]:
        """Vectors of the images, of which those that are known are not made again."""
        path = self.folder / f"{title.replace(', ', '-').replace(' ', '_')}{'_bf16' * self.bf16}.npy"
        known: ndarray | None = np.load(path) if path.is_file() else None
        start = 0 if known is None else len(known)
        if known is not None and start >= len(images.files):
            return known[: len(images.files)]
        model = make()
        write_json(path.with_suffix(".json"), about_model(model))
        labels = None if images.labels is None else images.labels[start:]
        left = ImageSet(images.root, images.files[start:], labels)
        for batch in BatchLoader(left, Preprocess(model.preprocessing), BATCH):
            with torch.inference_mode(), products(self.bf16):
                found = features_of(model, batch.pixels).cpu().vector[1].numpy()
            known = found if known is None else np.concatenate([known, found])
            np.save(path, known)
        assert known is not None
        assert len(known) == len(images.files)  # a file that cannot be read would shift all others
        return known

    def row(self, title: str, make: Callable[[], Model]) -> dict[str, Any]:
        """What a changed model did beside the original: cosine, relative error, and with a gallery the nearest prototypes."""
        own = self.made(title, make, self.images)
        path = self.folder / f"{title.replace(', ', '-').replace(' ', '_')}{'_bf16' * self.bf16}.json"
        cosines = (unit_rows(own).astype(np.float64) * unit_rows(self.aim)).sum(axis=1)
        errors = ((own.astype(np.float64) - self.aim) ** 2).sum(axis=1) / (self.aim.astype(np.float64) ** 2).sum(axis=1)
        found = {"images": len(own), "cosine": _plain(mean_likeness(cosines)), "relative_error": _plain(mean(errors))}
        if self.gallery is not None and self.known is not None:
            found |= self._told(own, self.gallery, self.known)
        about = read_json(path)
        return found | {name: about[name] for name in ("kind", "precision", "plan_hash", "macs", "seeds", "state_hash")}

    def _told(self, own: ndarray, gallery: ImageSet, known: ndarray) -> dict[str, Any]:
        assert gallery.labels is not None
        names, vectors = np.asarray(gallery.labels), unit_rows(known)
        mine, aimed = (by_prototype(unit_rows(each), names, vectors) for each in (own, self.aim))
        found: dict[str, Any] = {"prototypes": len(names), "agreement": _plain(share(int((mine == aimed).sum()), len(mine)))}
        if self.images.labels is None:
            return found
        labels = np.asarray(self.images.labels)
        rows = has_company(labels, names)
        right, aim_right = (mine == labels)[rows], (aimed == labels)[rows]
        accuracy = share(int(right.sum()), len(right))
        return found | {"told": int(rows.sum()), "top1": _plain(accuracy), "difference": _plain(paired_difference(right, aim_right))}


def _plain(found: Estimate) -> dict[str, Any]:
    interval = None if found.interval is None else [round(bound, 6) for bound in found.interval]
    return {"value": round(found.value, 6), "interval": interval}


def shown(title: str, row: dict[str, Any]) -> str:
    """One line of figures with their intervals."""

    def figure(name: str, digits: int) -> str:
        value, interval = row[name]["value"], row[name]["interval"] or ()
        return f"{value:.{digits}f} [{', '.join(f'{bound:.{digits}f}' for bound in interval)}]"

    line = f"{title:20s} cosine {figure('cosine', 4)}  relative error {figure('relative_error', 4)}"
    if "agreement" in row:
        line += f"  same of {row['prototypes']} prototypes {figure('agreement', 1)}"
    if "told" in row:
        line += f"  top-1 {figure('top1', 1)} ({figure('difference', 1)}, {row['told']} images)"
    return f"{line}  {row['images']} images, {row['kind']}"
