"""What collecting attention statistics costs on top of a forward pass, on random weights.

    python benchmarks/calibrate_cost.py --json docs/results/calibrate_cost.json

Three variants per model, interleaved in random order in one process: `fused` (timm as it comes), `explicit` (timm with
fused_attn=False, so that every map is written), `collect` (explicit maps and their statistics: what calibrate does per batch,
image decoding apart). Ratios are medians of paired rounds with a 95 % bootstrap interval. Memory is the growth of the
process's peak resident memory from before the counters exist until the statistics are finished, in a process of its own.
Random weights give quiet maps: the rare bins, which real maps do use, cost neither time nor touched pages here. With
all of them touched the counters take 336 bytes per attention weight: 0.47 GB (DeiT-Tiny) and 1.88 GB (DeiT-Base).

Targets: collect at most 1.15 x explicit; at most 1 GB (DeiT-Tiny) and 3 GB (DeiT-Base) more memory.

What was tried, one thread, DeiT-Tiny shapes (12 sites of 3 x 197 x 197 maps), batches of 16, milliseconds per image beside
about 33 of an explicit forward pass, on a shared and noisy 2-core machine:
    counters [entries, 16] uint32, one scalar increment per weight, rare bins in uint8          2.9   (8.8 %)
    the same, tiles without any weight >= 1/16 on a loop of their own                           2.6   (7.8 %)
    counters [16, entries] uint32, compare-and-add per bin over codes in cache (SIMD)           2.5   (7.5 %)
        of which codes and sums 0.5, rare bins 0.5, compares 0.3, the rest is memory traffic of the counters
    the same into uint8 counters that are added to the uint32 ones every 255 images             2.3   (6.9 %, kept)
The variants were timed in separate runs on synthetic maps (best of 4 to 6), so 2.3, 2.5 and 2.6 are not clearly apart.
Whole collect / explicit in CPU time of one thread: 1.06 [1.03, 1.10] DeiT-Tiny (batch 16, 7 rounds), 1.03 DeiT-Base (batch 4,
3 rounds, too few for an interval). This is not the target's figure, which is wall time with 2 threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import multiprocessing
import platform
import resource
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vitfrost.files import write_json
from vitfrost.model import Model
from vitfrost.statistics.collector import MapCollector
from vitfrost.timing.rounds import paired_ratio, seconds_per_image
from vitfrost.vit.families import find_sites

MODELS = {"deit_tiny_patch16_224": 1e9, "deit_base_patch16_224": 3e9}
TARGET = 1.15


def build(name: str, fused: bool) -> torch.nn.Module:
    """A timm model with random weights whose attention is fused or explicit."""
    model = Model.open(name, weights="random").module
    for site in find_sites(model).attention:
        setattr(model.get_submodule(site.name), "fused_attn", fused)  # noqa: B010  (mypy)
    return model


def measure_time(name: str, batch_size: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds per image of every variant and round."""
    pixels = torch.randn(batch_size, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    watched = build(name, fused=False)
    sites = find_sites(watched).attention
    variants: dict[str, Callable[[], object]] = {}
    for label, fused in (("fused", True), ("explicit", False)):
        variants[label] = partial(build(name, fused), pixels)
    variants["collect"] = partial(watched, pixels)
    with torch.inference_mode(), MapCollector(watched, sites):
        return seconds_per_image(variants, batch_size, rounds, seed)


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def extra_memory(name: str, batch_size: int, batches: int, threads: int, collect: bool) -> int:
    """Growth of the peak resident memory while `batches` different batches pass."""
    torch.set_num_threads(threads)
    model = build(name, fused=False)
    sites = find_sites(model).attention
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        model(torch.randn(batch_size, 3, 224, 224, generator=generator))
        before = peak_bytes()
        with MapCollector(model, sites) if collect else nullcontext() as collector:
            for _ in range(batches):
                model(torch.randn(batch_size, 3, 224, 224, generator=generator))
        kept = collector.finish() if collector is not None else None
    after = peak_bytes()
    del kept
    return after - before


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-batches", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models:
        memory_target = MODELS[name]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            arguments = (name, options.batch_size, options.memory_batches, options.threads)
            memory = pool.apply(extra_memory, (*arguments, True))
            plain = pool.apply(extra_memory, (*arguments, False))
        seconds = measure_time(name, options.batch_size, options.rounds, options.seed)
        rows.append(
            {
                "model": name,
                "milliseconds_per_image": {label: 1e3 * float(np.median(values)) for label, values in seconds.items()},
                "collect_over_explicit": paired_ratio(seconds["collect"], seconds["explicit"], options.seed),
                "collect_over_fused": paired_ratio(seconds["collect"], seconds["fused"], options.seed),
                "target_ratio": TARGET,
                "extra_memory_bytes": memory,
                "extra_memory_without_collection_bytes": plain,
                "target_memory_bytes": memory_target,
            }
        )
        row = rows[-1]
        times = ", ".join(f"{label} {value:.2f} ms" for label, value in row["milliseconds_per_image"].items())
        print(f"{name}: {times}")
        for label in ("collect_over_explicit", "collect_over_fused"):
            middle, low, high = row[label]
            print(f"    {label.replace('_', ' ')}: {middle:.3f} [{low:.3f}, {high:.3f}]")
        print(f"    extra memory {memory / 1e9:.2f} GB (target {memory_target / 1e9:.0f}), the forward pass alone {plain / 1e9:.2f} GB")
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "models")}
    environment = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        "load_average": os.getloadavg()[0],
        **settings,
    }
    if options.json is not None:
        write_json(options.json, {"environment": environment, "rows": rows})


if __name__ == "__main__":
    main()
