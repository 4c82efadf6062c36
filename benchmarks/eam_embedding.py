"""The EAM claims on a model that gives an embedding: entries frozen by share and criterion, in floating point and at 4 bits.

    python benchmarks/eam_embedding.py --weights clip/model.safetensors --calibration DIR --images DIR --work DIR --json clip_eam.json \
        --cases "0.5 entropy 32" "0.5 fisher@model 32" "0 none 4"

Nothing is fetched. Statistics are of the model in floating point; `--work` may be that of real_models.py, whose statistics are then taken.
A case is `SHARE CRITERION BITS`, such as `0.5 entropy 32` (constants in floating point, nothing else changed) or `0.5 entropy 4` (W4/A4 by
RepQ-ViT, constants of 4 bits); the share is taken in every head, or in the model with `fisher@model`. `0 none 4` is W4/A4 alone,
`0 none fast44` and `0 none repq48` are other quantizers. Its row stands beside the original on the same images; vectors that are known are
not made again. Of labeled calibration images the original's vectors of every so many classes are the prototypes, as in real_models.py;
with `--every 0` only features are compared. `--divergence COUNT` compares the maps of W4/A4 with the original's: the divergence of
equation 14 over so many images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import numpy as np

import vitfrost as vf
from embeddings import Embeddings, shown
from real_models import CLIP, prototypes
from vitfrost.files import write_json
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.statistics.site import kl_maps

QUANTIZED = "0 none 4"


def methods_of(case: str) -> list[Any]:
    """What is done to the model."""
    share, criterion, bits = case.split()
    by, _, scope = criterion.partition("@")
    whole = {"scope": cast(Any, scope or "head"), "bits": cast(Any, 4 if bits == "4" else 32)}
    made: list[Any] = [vf.FreezeEntries(float(share), by=by, **whole)] if float(share) else []
    if bits[-2:].isdigit() and bits[:-2] in ("repq", "fast"):
        weights, activations = (cast(Any, int(digit)) for digit in bits[-2:])
        return [*made, vf.Quantize(weights, activations, method=bits[:-2])]
    return [*made, vf.Quantize(4, 4) if bits == "4" else vf.Quantize(32, 32)]  # without it plans of frozen entries have 4 bits


class Work:
    """What is measured once and kept in a folder."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.work
        features: dict[str, Any] = {"outputs": "embedding", "options": {"num_classes": 0}} if options.headless else {}
        self.model = Model.open(options.model, weights=options.weights, **features)
        path = self.folder / "statistics.safetensors"
        if not path.is_file():
            config = vf.Calibrate(
                limit=options.calibration_images, sensitivity=True, detail="entries", batch_size=8, memory_limit=options.memory
            )
            vf.calibrate(self.model, options.calibration, config, out=path)
        self.statistics = vf.Statistics.load(path)

    def changed(self, case: str) -> Model:
        """The model of a case. What is quantized lies in the folder, because it takes long."""
        folder, config = self.folder / f"eam_{case.replace(' ', '_')}", vf.Compress(calibration_images=self.options.quantizer_images)
        if folder.is_dir():
            return vf.Artifact.load(folder)
        quantized = any(isinstance(method, vf.Quantize) for method in methods_of(case))
        return vf.compress(
            self.model,
            vf.plan(self.statistics, *methods_of(case)),
            statistics=self.statistics,
            images=self.options.calibration,
            config=config if quantized else vf.Compress(),
            out=folder if quantized else None,
        )

    def rows(self) -> dict[str, Any]:
        """Rows of all cases, beside the original."""
        options = self.options
        gallery = prototypes(options.calibration, options.every) if options.every else None
        images = open_images(options.images, need_labels=bool(options.every), classes=1000).subset(options.limit, 0)
        embeddings = Embeddings(self.folder / "embeddings", self.model, images, gallery, options.bf16)
        rows: dict[str, Any] = {}
        for case in options.cases:
            rows[case] = embeddings.row(case, lambda case=case: self.changed(case))  # type: ignore[misc]
            print(shown(case, rows[case]), flush=True)
        return rows

    def divergence(self, count: int) -> dict[str, list[float]]:
        """Of every layer, the mean divergence in bits between an attention weight in floating point and at W4/A4, of the class token's row
        and of the others."""
        both = []
        for model, side in ((self.model, "before"), (self.changed(QUANTIZED), "after")):
            config = vf.Calibrate(limit=count, detail="entries", batch_size=8, maps=cast(Any, side))
            both.append(vf.calibrate(model, self.options.calibration, config))
        found: dict[str, list[float]] = {"class token": [], "patches": []}
        for name, site in both[0].sites.items():
            maps: Any = kl_maps(cast(Any, site), cast(Any, both[1].sites[name]))
            found["class token"].append(float(np.mean(maps[:, :, 0])))
            found["patches"].append(float(np.mean(maps[:, :, 1:])))
        return found


def main() -> None:
    """Measure the cases, print a line for each and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CLIP)
    for name in ("weights", "calibration", "images", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--headless", action="store_true", help="compare a classifier's pooled features")
    parser.add_argument("--bf16", action="store_true", help="evaluate with products in bfloat16, the original as well")
    parser.add_argument("--memory", type=float, default=3.0, metavar="GB", help="for the counters of the statistics")
    parser.add_argument("--quantizer-images", type=int, help="as many as the quantizer takes, if not given")
    for name, count in (("calibration-images", 96), ("limit", 200), ("every", 5), ("divergence", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work = Work(options)
    rows = work.rows()
    settings = {name: getattr(options, name) for name in ("model", "headless", "bf16", "limit", "every", "quantizer_images")}
    written: dict[str, Any] = {"settings": settings | {"calibration_images": work.statistics.header.images}}
    if options.divergence:
        written["divergence"] = {"images": options.divergence, **work.divergence(options.divergence)}
        print(written["divergence"])
    write_json(options.json, written | {"weights": work.model.state_hash, "rows": rows})


if __name__ == "__main__":
    main()
