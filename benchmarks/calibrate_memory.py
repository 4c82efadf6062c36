"""Growth of the process's peak resident memory by one whole `calibrate` on real images, file written, in GB.

    python benchmarks/calibrate_memory.py --weights model.safetensors --images DIR --limit 1000

The peak before is taken after a forward pass with explicit maps, batch 16. Run it with several limits, each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch

import vitfrost
from vitfrost.vit.load import load_model


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=1000)
    options = parser.parse_args()
    loaded = load_model(options.model, options.weights)
    for block in loaded.model.blocks:
        block.attn.fused_attn = False
    with torch.inference_mode():
        loaded.model(torch.randn(16, 3, *loaded.image_size))
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        vitfrost.calibrate(loaded, options.images, limit=options.limit, out=Path(folder) / "statistics.safetensors", progress=False)
    print(f"{options.limit} images: {(peak_bytes() - before) / 1e9:.2f} GB more")


if __name__ == "__main__":
    main()
