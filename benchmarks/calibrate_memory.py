"""Growth of the process's peak resident memory by one whole `calibrate` on real images, file written, in GB.

    python benchmarks/calibrate_memory.py --weights model.safetensors --images DIR --limit 1000
    python benchmarks/calibrate_memory.py --model deit_base_patch16_224 --weights random --images DIR --limit 1000

The peak before is taken after a forward pass with explicit maps, batch 16; the growth includes the copy of the model that calibrate
makes. Random weights get queries and keys large enough for logits that vary by about 4: timm's own give even maps, which never
touch the pages of the rare bins (240 of the 336 bytes of a weight's counters). Run it with several limits, each in a process of its own.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import resource
import tempfile
from math import sqrt
from pathlib import Path

import torch

import vitfrost
from vitfrost.model import Model
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import RANDOM_WEIGHTS


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True, help="a file, or 'random'")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args()
    loaded = Model.open(options.model, weights=options.weights)
    sites = find_sites(loaded.module).attention
    for site in sites:
        attention = loaded.module.get_submodule(site.name)
        setattr(attention, "fused_attn", False)  # noqa: B010  (mypy)
        if options.weights == RANDOM_WEIGHTS:
            rows = loaded.module.get_parameter(f"{site.name}.qkv.weight").data[: 2 * site.width]
            rows *= 2 / (float(rows.std()) * sqrt(site.width))
    with torch.inference_mode():
        loaded.module(torch.randn(16, 3, *loaded.image_size))
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        statistics = vitfrost.calibrate(loaded, options.images, vitfrost.Calibrate(limit=options.limit), out=path, progress=False)
    peak = peak_bytes()
    entries = sum(site.entries for site in sites)
    print(
        f"{options.model}, {statistics.header.images} images, {entries:,} attention weights: "
        f"{(peak - before) / 1e9:.2f} GB more, {peak / 1e9:.2f} GB in all"
    )


if __name__ == "__main__":
    main()
