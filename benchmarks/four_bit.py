"""Quantizers on a model: top-1 beside the original on the same images, paired, with agreement and KL divergence, over calibration draws.

    python benchmarks/four_bit.py --weights model.safetensors --calibration DIR --images DIR --out DIR --json four_bit.json \
        --cases fast-w4a4 fast-w4a8 fast-w4a4-frozen repq-w4a4 --draws 3

Images with labels are needed to measure on; calibration images need none. Settings must not be chosen on the images that are measured on.
`-heads` freezes a fifth of the heads whole, with dense maps, and repairs the model before it is quantized; `-searched` as many or more,
found by a search. `best-w3a3-relu` has ReLU in place of GELU, `fast-w4a4-bases` searches bases of maps. A case's outcome for a draw is a
file of its own in --out, so a killed run goes on; times are of the process, on one thread, without those of statistics and search, which
all draws share.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitfrost
from vitfrost.configs import Calibrate, Compress, FreezeEntries, FreezeHeads, Quantize, Repair, Search
from vitfrost.evaluation.description import executed_macs
from vitfrost.evaluation.intervals import bootstrap_over_seeds, divergences, mean, paired_difference
from vitfrost.files import read_json, write_json
from vitfrost.images.batches import take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.plans.schema import Plan
from vitfrost.statistics.record import Statistics
from vitfrost.vit.families import find_sites

BITS: dict[str, tuple[Any, Any]] = {"w4a4": (4, 4), "w4a8": (4, 8), "w6a6": (6, 6), "w3a3": (3, 3)}
FROZEN = ("-frozen", "-heads", "-searched")


def plan_of(case: str, loaded: Model, statistics: Path, calibration: Path) -> tuple[Any, Statistics | None]:
    """The plan of a case such as `fast-w4a4-frozen`, `best-w3a3-relu` or `fast-w4a4+ridge+rounding`, and the statistics it takes."""
    what = next((each for each in FROZEN if case.endswith(each)), "")
    named, *steps = case.removesuffix(what).split("+")
    method, bits, *more = named.split("-")
    chosen = None if not steps else tuple(step for step in steps if step != "none")
    weights, activations = BITS[bits]
    quantize = Quantize(
        weights, activations, "strict", method, chosen, relu="relu" in more, map_base="searched" if "bases" in more else "sqrt2"
    )
    if not what:
        return unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), quantize), None
    if not statistics.is_file():
        vitfrost.calibrate(loaded, calibration, Calibrate(limit=200, sensitivity=True), progress=False, out=statistics)
    known = Statistics.load(statistics)
    if what == "-frozen":
        return vitfrost.plan(known, FreezeEntries(0.2, by="fisher", scope="model"), quantize), known
    chosen_heads = vitfrost.plan(known, FreezeHeads(0.2, kind="dense"), quantize)
    if what == "-searched":
        found = statistics.with_name("searched.yaml")
        if not found.is_file():
            macs = executed_macs(vitfrost.compress(loaded, vitfrost.plan(known, FreezeHeads(0.2, kind="dense")), statistics=known))
            budget = Search(target_macs=macs / executed_macs(loaded) + 1e-6, over=("heads",), images=96)
            vitfrost.search(loaded, calibration, budget, FreezeHeads(kind="dense"), statistics=known, out=found)
        chosen_heads = Plan.load(found).model_copy(update={"quantize": quantize})
    return chosen_heads, known


def bits(outcomes: np.ndarray) -> str:
    """Ones and zeros as a word."""
    return "".join(str(int(each)) for each in outcomes)


@torch.no_grad()
def logits_of(module: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Outputs, 25 images at a time."""
    return torch.cat([module(part) for part in pixels.split(25)]).numpy()


def outcome(case: str, draw: int, options: argparse.Namespace, loaded: Model, seen: Any) -> dict[str, Any]:
    """One case with one draw, measured."""
    plan, statistics = plan_of(case, loaded, options.out / "statistics.safetensors", options.calibration)
    start = time.process_time()
    config = Compress(draw, options.calibration_images)
    folder = options.out / "artifacts" / f"{case}-{draw}"
    repair = Repair() if case.endswith(("-heads", "-searched")) else None
    made = vitfrost.compress(
        loaded, plan, statistics=statistics, images=options.calibration, repair=repair, config=config, out=folder, overwrite=True
    )
    seconds = time.process_time() - start
    logits, reference, labels = logits_of(made.module, seen.pixels), seen.reference, np.array(seen.labels)
    right, wanted = logits.argmax(1) == labels, reference.argmax(1) == labels
    lost = mean(divergences(reference, logits))
    drop = paired_difference(right, wanted)
    return {
        "case": case, "draw": draw, "images": len(labels), "top1": 100 * float(right.mean()), "original_top1": 100 * float(wanted.mean()),
        "difference": drop.value, "interval": drop.interval, "agreement": 100 * float((logits.argmax(1) == reference.argmax(1)).mean()),
        "divergence": lost.value, "divergence_interval": lost.interval, "cpu_seconds": round(seconds, 1), "quantization": made.quantization,
        "right": bits(right), "original_right": bits(wanted),
    }  # fmt: skip


def table(outcomes: list[dict[str, Any]]) -> str:
    """Markdown: one line per case, means over draws; the interval of the difference over draws and images."""
    lines = [
        "| case | draws | top-1 | difference by draw | mean [95 %] | agreement | KL, nats | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in sorted({each["case"] for each in outcomes}):
        found = sorted((each for each in outcomes if each["case"] == case), key=lambda each: each["draw"])
        kinds = ("top1", "difference", "agreement", "divergence", "cpu_seconds")
        top1, drop, agreement, lost, seconds = (float(np.mean([each[kind] for each in found])) for kind in kinds)
        original = np.array([character == "1" for character in found[0]["original_right"]])
        model = np.array([[character == "1" for character in each["right"]] for each in found])
        interval = bootstrap_over_seeds(model, np.tile(original, (len(model), 1))).interval
        assert interval is not None
        low, high = interval
        by_draw = ", ".join(f"{each['difference']:+.2f}" for each in found)
        lines.append(
            f"| {case} | {len(found)} | {top1:.2f} | {by_draw} | **{drop:+.2f} [{low:+.2f}, {high:+.2f}]** | {agreement:.1f} % "
            f"| {lost:.3f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--calibration-images", type=int)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--draws", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    loaded = Model.open(options.model, weights=options.weights)
    image_set = open_images(options.images, need_labels=True)
    seen: Any = take_usable(image_set, Preprocess(loaded.preprocessing), len(image_set))
    seen.reference = logits_of(loaded.module, seen.pixels)
    for draw in options.draws:
        for case in options.cases:
            path = options.out / f"{case}-{draw}.json"
            if not path.is_file():
                write_json(path, outcome(case, draw, options, loaded, seen))
            found = read_json(path)
            print(
                case,
                draw,
                {key: found[key] for key in ("top1", "difference", "interval", "agreement", "divergence", "cpu_seconds")},
                flush=True,
            )
    outcomes = [read_json(path) for path in sorted(options.out.glob("*-*.json"))]
    print(table(outcomes))
    if options.json is not None:
        write_json(options.json, {"model": options.model, "outcomes": outcomes})


if __name__ == "__main__":
    main()
