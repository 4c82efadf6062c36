"""The EAM claims on a model that gives an embedding: entries frozen by share and criterion, in floating point and at 4 bits.

    python benchmarks/eam_embedding.py --weights clip/model.safetensors --calibration DIR --images DIR --work DIR --json clip_eam.json

Nothing is fetched. Statistics are of the model in floating point. Every case is an artifact in `--work`, which is made once; its row stands
beside the original on the same images. Of labeled calibration images those of every fifth class are the prototypes, as in real_models.py.
A case is `SHARE CRITERION BITS`, such as `0.5 entropy 32` (constants in floating point, nothing else changed) or `0.5 entropy 4` (W4/A4 by
RepQ-ViT, constants of 4 bits), or `0 none 4` for W4/A4 alone, `0 none fast44` and `0 none repq48` for other quantizers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import vitfrost as vf
from real_models import CLIP, products, prototypes, shown
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.files import read_json, write_json
from vitfrost.model import Model


def methods_of(case: str) -> list[Any]:
    """What is done to the model."""
    share, by, bits = case.split()
    made: list[Any] = [vf.FreezeEntries(float(share), by=by, scope="head", bits=4 if bits == "4" else 32)] if float(share) else []
    if bits[-2:].isdigit() and bits[:-2] in ("repq", "fast"):
        weights, activations = (cast(Any, int(digit)) for digit in bits[-2:])
        return [*made, vf.Quantize(weights, activations, method=bits[:-2])]
    return [*made, vf.Quantize(4, 4)] if bits == "4" else made


def rows_of(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of all cases; those that are not known are measured in one pass."""
    path = options.work / "statistics.safetensors"
    if not path.is_file():
        config = vf.Calibrate(
            limit=options.calibration_images, sensitivity=True, detail="entries", batch_size=8, memory_limit=options.memory
        )
        vf.calibrate(model, options.calibration, config, out=path)
    statistics = vf.Statistics.load(path)
    place = options.work / f"eam_rows_{options.limit}{'_bf16' * options.bf16}.json"
    known: dict[str, Any] = read_json(place) if place.is_file() else {}
    models: dict[str, Model] = {}
    for case in options.cases:
        if case in known:
            continue
        folder = options.work / f"eam_{case.replace(' ', '_')}"
        if not folder.is_dir():
            vf.compress(model, vf.plan(statistics, *methods_of(case)), statistics=statistics, images=options.calibration, out=folder)
        models[case] = vf.Artifact.load(folder)
    if models:
        drawn, gallery = vf.Evaluate(limit=options.limit, batch_size=8), prototypes(options.calibration)
        with products(options):
            made = evaluate_many(models, options.images, reference=model, gallery=gallery, config=drawn)
        known |= {case: row.model_dump(mode="json") for case, row in zip(models, made, strict=True)}
        write_json(place, known)
    return {case: known[case] for case in options.cases}


def main() -> None:
    """Measure the cases, print a line for each and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CLIP)
    for name in ("weights", "calibration", "images", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--bf16", action="store_true", help="evaluate with products in bfloat16, the original as well")
    parser.add_argument("--memory", type=float, default=3.0, metavar="GB", help="for the counters of the statistics")
    for name, count in (("calibration-images", 96), ("limit", 200)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = Model.open(options.model, weights=options.weights)
    rows = rows_of(model, options)
    for case, row in rows.items():
        print(shown(case, row), flush=True)
    settings = {name: getattr(options, name) for name in ("model", "bf16", "calibration_images", "limit")}
    write_json(options.json, {"settings": settings, "weights": model.state_hash, "rows": rows})


if __name__ == "__main__":
    main()
