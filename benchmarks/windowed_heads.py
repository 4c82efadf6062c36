"""Frozen heads against windowed heads: multiply-accumulates, and the cosine of the tokens to the original's; JSON and a figure.

    python benchmarks/windowed_heads.py --model vit_small_patch14_dinov2 --option num_classes=0 --weights model.safetensors \
        --calibration DIR --images DIR --json docs/results/windowed_dinov2.json
    python benchmarks/windowed_heads.py --figure docs/results/windowed.png docs/results/windowed_dinov2.json docs/results/windowed_deit.json

Nothing is trained or repaired. Statistics are of whole heads. Frozen heads are those of least output error, with kernels of tolerance 0.1;
windowed ones those with the least mass outside. Rows that the JSON file has already are not measured again. `--time` also times every row
in PyTorch beside the original, interleaved, which takes a quiet machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import vitfrost
from vitfrost.configs import Calibrate, FreezeHeads, WindowHeads
from vitfrost.files import write_text
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model

VARIANTS: dict[str, Sequence[Any]] = {
    **{f"frozen {share:.0%}": [FreezeHeads(share, by="output-error")] for share in (0.1, 0.25, 0.5)},
    **{
        f"windowed {side} x {side}, {share:.0%}{', mean outside' if outside == 'mean' else ''}": [
            WindowHeads(share, side, cast(Any, outside))
        ]
        for side in (9, 15)
        for share, outside in ((0.25, "none"), (0.5, "none"), (0.5, "mean"), (0.75, "none"), (1.0, "none"))
    },
    "frozen 10%, windowed 9 x 9, 50%": [FreezeHeads(0.1, by="output-error"), WindowHeads(0.5, 9)],
}


def tokens_of(module: Any, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """The normalized tokens [images, N, d] behind the last block."""
    with torch.inference_mode():
        return torch.cat([module.forward_features(batch) for batch in batches])


def cosines(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Mean over the tokens and images, and its standard error over the images."""
    each = torch.cosine_similarity(found, expected, dim=-1).mean(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def seconds(modules: Sequence[Any], pixels: torch.Tensor, rounds: int) -> list[float]:
    """Median time of each on one image, the modules in turn."""
    taken: list[list[float]] = [[] for _ in modules]
    with torch.inference_mode():
        for number in range(rounds + 1):
            for module, own in zip(modules, taken, strict=True):
                started = time.perf_counter()
                module(pixels)
                if number:
                    own.append(time.perf_counter() - started)
    return [float(np.median(own)) for own in taken]


def measure(options: argparse.Namespace) -> None:
    """Measure the rows that the file does not have."""
    chosen = {name: int(number) for name, _, number in (each.partition("=") for each in options.option)}
    loaded = Model.open(options.model, weights=options.weights, image_size=options.image_size, options=chosen)
    statistics = vitfrost.calibrate(loaded, options.calibration, Calibrate(limit=options.limit, detail="heads"), progress=False)
    loader = BatchLoader(open_images(options.images).subset(options.evaluate, 0), Preprocess(loaded.preprocessing), 1)
    batches = [batch.pixels for batch in loader]
    prefix = statistics.header.sites[0]["prefix_tokens"]
    expected = tokens_of(loaded.module, batches)
    whole = sum(vitfrost.inspect(loaded)["macs"].values())
    about = {"model": options.model, "image_size": loaded.image_size, "calibration_images": options.limit, "images": options.evaluate}
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.is_file() else about | {"macs": whole, "rows": {}}
    for name, methods in VARIANTS.items():
        known = found["rows"].setdefault(name, {})
        if "patches" in known and not options.time:
            continue
        plan = vitfrost.plan(statistics, *methods)
        made = vitfrost.compress(loaded, plan, statistics=statistics)
        if "patches" not in known:
            tokens = tokens_of(made.module, batches)
            known["macs_share"] = sum(vitfrost.inspect(loaded, plan=plan)["planned"]["macs"].values()) / whole
            known["patches"], known["patches_error"] = cosines(tokens[:, prefix:], expected[:, prefix:])
            known["class_token"], _ = cosines(tokens[:, :1], expected[:, :1])
        if options.time:
            original, own = seconds([loaded.module, made.module], batches[0], options.rounds)
            known["time_share"] = own / original
        write_text(options.json, json.dumps(found, indent=1) + "\n")
        print(name, known, flush=True)


def draw(files: Sequence[Path], out: Path) -> None:
    """The cosine of patches over the share of multiply-accumulates, one panel a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(files), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, path in enumerate(files):
        found = json.loads(path.read_text())
        axes: Any = figure.add_subplot(1, len(files), place + 1)
        for label, beginning in (("frozen", "frozen"), ("windowed 9 x 9", "windowed 9 x"), ("windowed 15 x 15", "windowed 15 x")):
            others = ("mean outside", "frozen 10%, windowed")
            rows = [row for name, row in found["rows"].items() if name.startswith(beginning) and not any(each in name for each in others)]
            points = sorted((row["macs_share"], row["patches"], row["patches_error"]) for row in rows)
            if points:
                shares, means, errors = zip(*points, strict=True)
                axes.errorbar(shares, means, yerr=errors, marker="o", label=label)
        axes.set_xlabel("multiply-accumulates, share of the original")
        axes.set_ylabel("patches' cosine to the original")
        axes.set_title(f"{found['model']}, {found['image_size'][0]} px", fontsize=9)
        axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="with --figure: files of earlier runs")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--weights")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=NUMBER", help="an option of timm's, such as num_classes=0")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--calibration", type=Path, help="images for the statistics")
    parser.add_argument("--images", type=Path, help="other images, to measure on")
    parser.add_argument("--limit", type=int, default=24, help="images for the statistics")
    parser.add_argument("--evaluate", type=int, default=12, help="images to measure on")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.figure is not None:
        draw(options.files, options.figure)
    else:
        measure(options)


if __name__ == "__main__":
    main()
