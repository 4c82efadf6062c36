"""The bits that the bundled model's statistics, plans and weights had at commit 6e8fddb, as SHA-256; JSON on standard output.

`test_bits.py` runs it in a process with the environment of `portable()`: then products and sums come out the same on every x86
processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path


def portable() -> dict[str, str]:
    """The environment in which no library uses more of the processor than all of them have."""
    from numpy._core._multiarray_umath import __cpu_dispatch__

    return dict(os.environ) | {
        "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def main(folder: Path) -> dict[str, str]:
    """SHA-256 by what it is of; files are written into `folder`."""
    import torch

    import vitfrost
    from vitfrost.example.data import write_digit_images
    from vitfrost.plans.file import plan_hash

    torch.set_num_threads(1)
    (images,) = write_digit_images(folder, ["calibration"])
    found: dict[str, str] = {}
    statistics = vitfrost.calibrate(
        "vitfrost_digits",
        images,
        vitfrost.Calibrate(limit=64, similarity=True, sensitivity=True),
        progress=False,
        out=folder / "statistics.safetensors",
    )
    plain = vitfrost.calibrate("vitfrost_digits", images, vitfrost.Calibrate(limit=64), progress=False)
    found["statistics"] = plain.content_hash
    cases = {
        "entries": ({"freeze": 0.2}, {}),
        "entries-model": (
            {
                "freeze": 0.5,
                "scope": "model",
                "by": "fisher",
                "ties": "strict",
                "protect": ("cls-rows",),
                "renormalize": "mass",
                "frozen_grid": "head",
                "order": "merge-quantize",
                "levels": "strict",
                "frozen_bits": 3,
            },
            {},
        ),
        "heads": ({"unit": "head", "freeze": 0.25, "by": "entropy"}, {"repair": "ridge", "repair_images": 50}),
        "layers": ({"unit": "layer", "freeze": 0.5, "constants": "local", "window": 3, "weight_bits": 8}, {}),
        "structure": ({"hallucinate": 0.5, "compact": 0.5}, {"compact_images": 32}),
    }
    for name, (options, how) in cases.items():
        plan = vitfrost.plan(statistics, **options)
        vitfrost.compress(
            "vitfrost_digits", plan, statistics=statistics, images=images, seed=3, calibration_images=16, out=folder / name, **how
        )
        found[f"plan {name}"] = plan_hash(plan)
        found[f"weights {name}"] = hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
