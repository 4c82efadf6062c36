"""CLIP's image tower with a share of its heads frozen by a search and repaired: cosine of embeddings, nearest of 200 prototypes, top-1.

    python benchmarks/real_models.py --weights clip/model.safetensors --calibration DIR --images DIR --work DIR --json real_models.json

Nothing is fetched: `--weights` are those of the architecture in timm. `--calibration` holds labeled images of ImageNet, one per class: they
are calibrated, searched and repaired on, and those of every fifth class are the prototypes. `--images` are labeled too. What was done lies
in `--work` and is not done again: statistics, the search (measurement by measurement), the artifacts, and a row for each. Statistics and
repairs are in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vitfrost as vf
from vitfrost.evaluation.description import executed_macs
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.files import read_json, write_json
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
    yield "fisher", by_fisher
    target = executed_macs(vf.compress(model, by_fisher, statistics=stats)) / executed_macs(model)
    budget = vf.Search(target_macs=target + 1e-6, over=("heads",), images=options.search_images)
    out = work / "search.yaml"
    with products(options):
        found = vf.search(model, str(options.calibration), budget, vf.FreezeHeads(kind="dense"), statistics=stats, resume=True, out=out)
    yield "search", found


def measure(model: Model, artifacts: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """The rows of artifacts beside the original; those that are not there yet are measured in one pass."""
    path = options.work / f"rows_{options.limit}{'_bf16' * options.bf16}.json"
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    left: dict[str, Model] = {title: vf.Artifact.load(artifact) for title, artifact in artifacts.items() if title not in known}
    if left:
        config = vf.Evaluate(limit=options.limit)
        with products(options):
            made = evaluate_many(left, options.images, reference=model, gallery=prototypes(options.calibration), config=config)
        known |= {title: row.model_dump(mode="json") for title, row in zip(left, made, strict=True)}
        write_json(path, known)
    return {title: known[title] for title in artifacts}


def products(options: argparse.Namespace) -> Any:
    """Within it, products are in bfloat16 where they are wanted so."""
    return torch.autocast("cpu", torch.bfloat16) if options.bf16 else nullcontext()


def shown(name: str, row: dict[str, Any]) -> str:
    """One line of figures with their intervals."""
    found = row["features"]
    likeness = found["likeness"]["pooled"]
    line = (
        f"{name:20s} cosine {likeness['cosine']:.4f} {likeness['cosine_interval']}  "
        f"relative error {likeness['relative_error']:.4f} {likeness['relative_error_interval']}"
    )
    if found["prototype_agreement"] is None:
        return line
    told = found["prototype"]
    change = told["difference"]
    return (
        f"{line}  same of {found['gallery_images']} prototypes {found['prototype_agreement']:.1f} % {found['prototype_agreement_interval']}"
        f"  top-1 {told['value']:.1f} % ({change['value']:+.1f} {change['interval']}, {found['told']} images)"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=CLIP)
    for name in ("weights", "calibration", "images", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--bf16", action="store_true", help="search and evaluate with products in bfloat16, the original as well")
    for name, count in (("calibration-images", 200), ("search-images", 50), ("repair-images", 200), ("limit", 650)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = Model.open(options.model, weights=options.weights)
    artifacts: dict[str, Path] = {}
    for name, plan in plans(model, options):
        for repair in (None, vf.Repair(images=options.repair_images)):
            title = f"{name}, repaired" if repair else name
            artifacts[title] = artifact = options.work / title.replace(", ", "-")
            if not artifact.is_dir():
                statistics = options.work / "statistics.safetensors"
                vf.compress(model, plan, statistics=statistics, images=options.calibration, repair=repair, progress=True, out=artifact)
    rows = measure(model, artifacts, options)
    for title, row in rows.items():
        print(shown(title, row), flush=True)
    names = ("model", "share", "bf16", "calibration_images", "search_images", "repair_images", "limit")
    settings = {name: getattr(options, name) for name in names}
    write_json(options.json, {"settings": settings, "weights": model.state_hash, "rows": rows})


if __name__ == "__main__":
    main()
