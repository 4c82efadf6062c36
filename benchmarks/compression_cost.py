"""What compressing takes, and what evaluating the result costs beside the original.

    python benchmarks/compression_cost.py --weights model.safetensors --calibration DIR --json docs/results/compression_cost.json

About two minutes on 2 cores. `compress` is timed from the call to the saved artifact (loading the model included), W4/A4 with 32
images and 20 % of the entries frozen. The forward passes of the original (fused attention), the quantized and the frozen model
are interleaved in random order in one process; ratios are medians of paired rounds with a 95 % bootstrap interval.

Targets: compress at most 60 s; the frozen W4/A4 model at most 3 x the original's time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import FreezeEntries
from vitfrost.evaluation.results import environment
from vitfrost.files import write_json
from vitfrost.model import Model
from vitfrost.timing.rounds import paired_ratio, seconds_per_image

MODEL = "deit_tiny_patch16_224"


def timed_forward(models: dict[str, nn.Module], batch_size: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds per image of every model and round, interleaved."""
    pixels = torch.randn(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return seconds_per_image({name: partial(model, pixels) for name, model in models.items()}, batch_size, rounds, seed, warm_up=2)


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        vitfrost.calibrate(
            vitfrost.Model.open(MODEL, weights=options.weights),
            options.calibration,
            vitfrost.Calibrate(limit=64),
            out=work / "statistics.safetensors",
        )
        plan = vitfrost.plan(work / "statistics.safetensors", FreezeEntries(0.2))
        seconds = []
        for number in range(3):
            start = time.perf_counter()
            original = vitfrost.Model.open(MODEL, weights=options.weights)
            given = {"statistics": work / "statistics.safetensors", "images": options.calibration}
            vitfrost.compress(original, plan, out=work / f"frozen{number}", **given)
            seconds.append(time.perf_counter() - start)
        frozen = Artifact.load(work / "frozen0")
        unfrozen = vitfrost.compress(
            original, vitfrost.plan(work / "statistics.safetensors", FreezeEntries(0.0)), out=work / "unfrozen", **given
        )
        sizes = {"frozen 20 %": frozen.size_bytes, "unfrozen": unfrozen.size_bytes}
    models = {"original": Model.open(MODEL, weights=options.weights).module, "quantized": unfrozen.module, "frozen": frozen.module}
    times = timed_forward(models, options.batch_size, options.rounds, options.seed)
    settings = {key: getattr(options, key) for key in ("threads", "batch_size", "rounds")}
    settings["omp_wait_policy"] = os.environ["OMP_WAIT_POLICY"]
    found = {
        "environment": environment() | settings,
        "compress_seconds": seconds,
        "artifact_bytes": sizes,
        "milliseconds_per_image": {name: 1e3 * float(np.median(values)) for name, values in times.items()},
        "frozen_over_original": paired_ratio(times["frozen"], times["original"], options.seed),
        "quantized_over_original": paired_ratio(times["quantized"], times["original"], options.seed),
    }
    for key, value in found.items():
        print(f"{key}: {value}")
    if options.json is not None:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
