"""Calibration by whole heads on long sequences: time beside a forward pass with explicit maps, peak memory, size of the file; JSON.

    python benchmarks/calibrate_long.py --model vit_small_patch14_dinov2 --weights model.safetensors --images DIR --limit 8
    python benchmarks/calibrate_long.py --model deit_small_patch16_224 --image-size 1024 --weights random --images DIR --limit 2

The first run on a machine also compiles, which later ones find on disk. Times are those of the processor (all threads together), images
decoded and file written included; memory is the peak of the process.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import vitfrost
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.vit.families import find_sites


def explicit_seconds(loaded: Model, images: Path, limit: int) -> float:
    """Processor time of decoding the images and passing them one by one with explicit maps."""
    model: Any = loaded.module
    for site in find_sites(model).attention:
        setattr(model.get_submodule(site.name), "fused_attn", False)  # noqa: B010  (mypy)
    loader = BatchLoader(open_images(images).subset(limit, 0), Preprocess(loaded.preprocessing), 1)
    started = time.process_time()
    with torch.inference_mode():
        for batch in loader:
            model(batch.pixels)
    return time.process_time() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights", required=True, help="a file, or 'random'")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=NUMBER", help="an option of timm's, such as num_classes=0")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--explicit", action="store_true", help="time the explicit pass too, which takes its own memory")
    options = parser.parse_args()
    chosen = {name: int(number) for name, _, number in (each.partition("=") for each in options.option)}
    loaded = Model.open(options.model, weights=options.weights, image_size=options.image_size, options=chosen)
    found: dict[str, Any] = {"model": options.model, "image_size": loaded.image_size, "images": options.limit}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        started = time.process_time()
        statistics = vitfrost.calibrate(
            loaded, options.images, vitfrost.Calibrate(limit=options.limit, detail="heads"), out=path, progress=False
        )
        found["seconds"] = time.process_time() - started
        found["tokens"] = statistics[next(iter(statistics.sites))].maps_shape[2]
        found["file_mb"] = path.stat().st_size / 1e6
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if options.explicit:
        found["explicit_seconds"] = explicit_seconds(loaded, options.images, options.limit)
        found["ratio"] = found["seconds"] / found["explicit_seconds"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
