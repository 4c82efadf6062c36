"""What hallucinated maps and compact blocks cost in accuracy when they are made in closed form, without training, and what the choices do.

    python benchmarks/hmhsa_cffn_closed_form.py --weights model.safetensors --calibration DIR --images DIR --json out.json

Real weights of one model (DeiT-Tiny by default). All variants start from the same statistics and calibration pictures of one seed and
are measured in one pass over the same images, so every difference is paired. About ten minutes on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, Hallucinate
from vitfrost.configs.flat import Method
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.evaluation.results import environment
from vitfrost.files import write_json
from vitfrost.model import Model

HALF = Hallucinate(0.5)
VARIANTS: dict[str, list[Method]] = {
    "hMHSA: medoids, ridge": [HALF],
    "hMHSA: explained, ridge": [replace(HALF, by="explained")],
    "hMHSA: medoids, one head times a scalar": [replace(HALF, inter_map="pair")],
    "hMHSA: medoids, copies": [replace(HALF, mix="copy")],
    "hMHSA: random heads, ridge": [replace(HALF, by="random")],
    "hMHSA: first heads, ridge": [replace(HALF, by="first")],
    "cFFN: rank 0.75 d": [Compact(0.75)],
    "cFFN: rank 0.5 d": [Compact(0.5)],
    "cFFN: rank 0.5 d, plain SVD": [Compact(0.5, init="weights")],
    "cFFN: rank 0.25 d": [Compact(0.25)],
    "hMHSA + cFFN: medoids, ridge, rank 0.5 d": [HALF, Compact(0.5)],
    "hMHSA + cFFN: explained, ridge, rank 0.5 d": [replace(HALF, by="explained"), Compact(0.5)],
}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="artifacts to measure in the same pass, such as trained ones")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=512, help="images behind the statistics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    original = Model.open(options.model, weights=options.weights)
    statistics = vitfrost.calibrate(
        original, options.calibration, vitfrost.Calibrate(limit=options.limit, seed=options.seed, similarity=True)
    )
    models: dict[str, Model] = {"original": original}
    for title, methods in VARIANTS.items():
        chosen = vitfrost.plan(statistics, *methods)
        models[title] = vitfrost.compress(
            original, chosen, statistics=statistics, images=options.calibration, config=Compress(seed=options.seed)
        )
    models |= {path.parent.name if path.name == "artifact" else path.name: Artifact.load(path) for path in options.also}
    rows = evaluate_many(models, options.images, reference="original")
    for row in rows:
        difference = row.top1_difference
        shown = "" if difference is None else f"{difference.value:+.2f} {difference.interval}"
        text = f"{row.name}: {row.top1:.2f} {row.interval}, difference {shown}, agreement {row.agreement:.2f}"
        print(f"{text}, KL {row.kl:.3f}, {(row.macs or 0) / 1e9:.3f} GMACs")
    structure = {name: artifact.structure for name, artifact in models.items() if isinstance(artifact, Artifact)}
    found = {"environment": environment(), "statistics_images": options.limit, "seed": options.seed, "structure": structure}
    write_json(options.json, found | {"rows": [row.model_dump(mode="json") for row in rows]})


if __name__ == "__main__":
    main()
