"""CLIP's image tower with a share of its heads frozen by a search and repaired: cosine of embeddings, nearest of 200 prototypes, top-1.

    python benchmarks/real_models.py --weights clip/model.safetensors --calibration DIR --images DIR --work DIR --json clip_heads.json

Nothing is fetched: `--weights` are those of the architecture in timm. `--calibration` holds labeled images of ImageNet, one per class: they
are calibrated, searched and repaired on, and the original's vectors of those of every fifth class are the prototypes. `--images` are
labeled too. What was done lies in `--work` and is not done again: statistics, the search (measurement by measurement), the artifacts, and
the vectors of every picture. Statistics and repairs are in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import vitfrost as vf
from embeddings import Embeddings, products, shown
from vitfrost.evaluation.description import executed_macs
from vitfrost.files import write_json
from vitfrost.images.source import ImageSet, open_images
from vitfrost.model import Model

CLIP = "vit_base_patch16_clip_quickgelu_224"
EVERY = 5  # of so many classes one has a prototype


def prototypes(folder: Path, every: int = EVERY) -> ImageSet:
    """The labeled images of every fifth class, or of every so many."""
    found = open_images(folder, need_labels=True, classes=1000)
    assert found.labels is not None
    kept = [(file, label) for file, label in zip(found.files, found.labels, strict=True) if label % every == 0]
    return replace(found, files=tuple(file for file, _ in kept), labels=tuple(label for _, label in kept))


def plans(model: Model, options: argparse.Namespace) -> Iterator[tuple[str, vf.Plan]]:
    """The share of heads with the least sensitivity, and as many by a search."""
    work, statistics = options.work, options.work / "statistics.safetensors"
    if not statistics.is_file():
        config = vf.Calibrate(limit=options.calibration_images, sensitivity=True, detail="entries", batch_size=8, memory_limit=3.0)
        vf.calibrate(model, options.calibration, config, out=statistics)
    stats = vf.Statistics.load(statistics)
    whole = vf.FreezeHeads(options.share, by="fisher", kind="dense")
    by_fisher = vf.plan(stats, whole, out=work / "fisher.yaml")
    if "fisher" in options.by:
        yield "fisher", by_fisher
    if "search" not in options.by:
        return
    target = executed_macs(vf.compress(model, by_fisher, statistics=stats)) / executed_macs(model)
    budget = vf.Search(target_macs=target + 1e-6, over=("heads",), images=options.search_images)
    out = work / "search.yaml"
    with products(options.bf16):
        found = vf.search(model, str(options.calibration), budget, vf.FreezeHeads(kind="dense"), statistics=stats, resume=True, out=out)
    yield "search", found


def artifacts(model: Model, options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The folder of every plan's artifact, without a repair and with one."""
    for name, plan in plans(model, options):
        for repair in (None, vf.Repair(images=options.repair_images)):
            title = f"{name}, repaired" if repair else name
            artifact = options.work / title.replace(", ", "-")
            if not artifact.is_dir():
                statistics = options.work / "statistics.safetensors"
                vf.compress(model, plan, statistics=statistics, images=options.calibration, repair=repair, progress=True, out=artifact)
            yield title, artifact


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=CLIP)
    for name in ("weights", "calibration", "images", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--by", nargs="+", choices=("fisher", "search"), default=("fisher", "search"), help="what chooses the heads")
    parser.add_argument("--bf16", action="store_true", help="search and evaluate with products in bfloat16, the original as well")
    for name, count in (("calibration-images", 200), ("search-images", 50), ("repair-images", 200), ("limit", 650)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = Model.open(options.model, weights=options.weights)
    images = open_images(options.images, need_labels=True, classes=1000).subset(options.limit, 0)
    rows: dict[str, Any] = {}
    embeddings = Embeddings(options.work / "embeddings", model, images, prototypes(options.calibration), options.bf16)
    for title, artifact in artifacts(model, options):
        rows[title] = embeddings.row(title, lambda artifact=artifact: vf.Artifact.load(artifact))  # type: ignore[misc]
        print(shown(title, rows[title]), flush=True)
    names = ("model", "share", "by", "bf16", "calibration_images", "search_images", "repair_images", "limit")
    settings = {name: getattr(options, name) for name in names}
    write_json(options.json, {"settings": settings, "weights": model.state_hash, "rows": rows})


if __name__ == "__main__":
    main()
