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
from typing import Any


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
    from vitfrost.configs import Compact, Compress, FreezeEntries, FreezeHeads, Hallucinate, Quantize, Repair
    from vitfrost.configs.flat import Method
    from vitfrost.example.data import write_digit_images

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
    cases: dict[str, tuple[list[Method], dict[str, Any]]] = {
        "entries": ([FreezeEntries(0.2)], {}),
        "entries-model": (
            [
                FreezeEntries(
                    0.5, "fisher", scope="model", ties="strict", protect=("cls-rows",), renormalize="mass", grid="head",
                    order="merge-quantize", bits=3,
                ),
                Quantize(4, 4, levels="strict"),
            ],
            {},
        ),
        "heads": ([FreezeHeads(0.25, by="entropy")], {"repair": Repair(images=50)}),
        "layers": ([FreezeHeads(0.5, "layer", kind="local", window=3), Quantize(8, 32)], {}),
        "structure": ([Hallucinate(0.5), Compact(0.5), Quantize()], {"config": Compress(3, 16, compact_images=32)}),
    }  # fmt: skip
    for name, (methods, how) in cases.items():
        plan = vitfrost.plan(statistics, *methods)
        options = {"config": Compress(3, 16)} | how
        vitfrost.compress("vitfrost_digits", plan, statistics=statistics, images=images, out=folder / name, **options)
        found[f"plan {name}"] = plan.content_hash
        found[f"weights {name}"] = hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
