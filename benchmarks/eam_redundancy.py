"""What lies behind the criteria: how they rank entries, what the quantizer makes constant by itself, which heads are stable.

    python benchmarks/eam_redundancy.py --run runs/eam/criteria --weights FILE --calibration DIR --images DIR --out FILE.json

About 15 minutes on 2 cores. `--run` is the folder of `python -m vitfrost.studies run recipes/eam/criteria.yaml`, whose statistics and
quantized models are used. Three parts, each kept in the file as soon as it is there:
- `correlations`: Spearman's rank correlation between criteria, per head (mean over heads) and over all entries of the model;
- `constant`: of the entries that a criterion freezes, how many the 4-bit map quantizer puts on one level (and on zero) in more than
  99 % of the images anyway, beside their share among all entries; and the attention mass that is frozen;
- `heads`: every head frozen to its mean map, alone, nothing quantized: KL to the original and accuracy, beside its mean entropy.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from scipy.stats import spearmanr

from vitfrost.artifact import Artifact
from vitfrost.configs import FreezeEntries
from vitfrost.evaluation.intervals import paired_difference
from vitfrost.evaluation.outcomes import measure_outcomes
from vitfrost.evaluation.results import environment
from vitfrost.files import read_json, write_json
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.frozen_entries import FrozenMaps
from vitfrost.methods.quantize.modules import LogQuantizer
from vitfrost.methods.quantize.quantizers import log_codes, zero_code
from vitfrost.model import Model
from vitfrost.plans.choose import plan
from vitfrost.plans.criteria import CRITERIA
from vitfrost.plans.freeze_entries import frozen_maps
from vitfrost.statistics.record import Statistics
from vitfrost.studies.shared import Remembered, SharedModel
from vitfrost.vit.families import install_map_attention

COMPARED = ("entropy", "mean", "variance", "output-error", "output-error-joint", "fisher")
FROZEN: tuple[tuple[str, Literal["head", "model"]], ...] = (
    ("entropy", "head"),
    ("random", "head"),
    ("variance", "head"),
    ("fisher", "head"),
    ("fisher", "model"),
)
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
LEVEL_IMAGES = 300


def count_levels(counts: Int[ndarray, "levels entries"], codes: Int[ndarray, "images entries"]) -> None:
    """Add to `counts`, in place, how many images put each entry on each level."""
    for level in range(len(counts)):
        counts[level] += (codes == level).sum(axis=0, dtype=counts.dtype)


def constant_entries(counts: Int[ndarray, "levels entries"], share: float = 0.99) -> Bool[ndarray, " entries"]:
    """Entries that stand on one level in more than `share` of the images."""
    return np.asarray(counts.max(axis=0) > share * counts.sum(axis=0))


def zero_entries(counts: Int[ndarray, "levels entries"], zero: int, share: float = 0.99) -> Bool[ndarray, " entries"]:
    """Entries that stand on the level `zero` in more than `share` of the images."""
    return np.asarray(counts[zero] > share * counts.sum(axis=0))


def correlations(statistics: Statistics) -> dict[str, Any]:
    """Rank correlations of all pairs of criteria."""
    scores = {
        name: [CRITERIA[name](site, 0, index) for index, site in enumerate(map(statistics.entries, statistics.sites))] for name in COMPARED
    }  # fmt: skip
    pairs = {}
    for number, one in enumerate(COMPARED):
        for other in COMPARED[number + 1 :]:
            heads = [
                spearmanr(a[:, head].reshape(-1), b[:, head].reshape(-1)).statistic
                for a, b in zip(scores[one], scores[other], strict=True)
                for head in range(a.shape[1])
            ]
            everything = [np.concatenate([part.reshape(-1) for part in scores[name]]) for name in (one, other)]
            pairs[f"{one} / {other}"] = {
                "per_head_mean": float(np.nanmean(heads)),
                "per_head_lowest": float(np.nanmin(heads)),
                "model": float(spearmanr(*everything).statistic),
            }
    return pairs


def level_counts(artifact: Model, images: Path, limit: int) -> dict[str, tuple[np.ndarray, int]]:
    """For every site, how many images put each entry on each level of its map quantizer [levels, entries], and the zero level."""
    attention = install_map_attention(artifact.module)
    counts: dict[str, tuple[np.ndarray, int]] = {}

    def observer(name: str, quantizer: LogQuantizer, entries: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
        zero = zero_code(quantizer.bits, quantizer.levels)
        counts[name] = (np.zeros((zero + 1, entries), np.uint32), zero)

        def observe(maps: torch.Tensor, values: torch.Tensor) -> None:
            codes = log_codes(maps, quantizer.step, quantizer.bits, quantizer.levels)
            count_levels(counts[name][0], codes.reshape(-1, entries).numpy())

        return observe

    for name, module in attention.items():
        assert isinstance(module.map_quantizer, LogQuantizer)
        module.observe(observer(name, module.map_quantizer, module.site.entries))
    with torch.inference_mode():
        for batch in BatchLoader(open_images(images).subset(limit, 0), Preprocess(artifact.preprocessing), 16):
            artifact.module(batch.pixels)
    return counts


def constants(statistics: Statistics, counts: dict[str, tuple[np.ndarray, int]]) -> dict[str, Any]:
    """Shares of entries that the quantizer makes constant, among all and among those that each criterion freezes."""
    constant = {name: constant_entries(levels) for name, (levels, _) in counts.items()}
    zero = {name: zero_entries(levels, at) for name, (levels, at) in counts.items()}
    mass = sum(float(site.mean.sum()) for site in statistics.sites.values())
    found: dict[str, Any] = {
        "all": {kind: float(np.mean(np.concatenate(list(part.values())))) for kind, part in (("constant", constant), ("zero", zero))}
    }
    for by, scope in FROZEN:
        for share in SHARES:
            made = plan(statistics, FreezeEntries(share, by=by, scope=scope))
            masks = {layer.site: frozen_maps(made, statistics.sites[layer.site], layer)[0].reshape(-1) for layer in made.layers}
            frozen = sum(int(mask.sum()) for mask in masks.values())
            found[f"{by}, {scope}, {share}"] = {
                "constant": sum(int((mask & constant[name]).sum()) for name, mask in masks.items()) / frozen,
                "zero": sum(int((mask & zero[name]).sum()) for name, mask in masks.items()) / frozen,
                "mass": sum(float(statistics.sites[name].mean.reshape(-1)[mask].sum()) for name, mask in masks.items()) / mass,
            }
    return found


def heads_alone(original: Model, statistics: Statistics, images: Path) -> list[dict[str, Any]]:
    """Every head frozen to its mean map, the others computed; layers before it are shared between the variants."""
    model = deepcopy(original.module)
    attention = install_map_attention(model)
    reference = replace(original, module=Remembered(original.module))
    image_set = open_images(images, need_labels=True, classes=original.classes)
    found = []
    with SharedModel(model) as shared:
        members, about = [], []
        for name, module in attention.items():
            site = statistics.sites[name]
            for head in range(module.site.heads):
                mask = torch.zeros(site.maps_shape, dtype=torch.bool)
                mask[:, head] = True
                frozen = FrozenMaps(mask, None, 32, "published")
                frozen.set_values(torch.from_numpy(site.mean), None)
                members.append(replace(original, module=shared.add({name: frozen})))
                about.append({"site": name, "head": head, "entropy": float(site.entropy[:, head].mean())})
        measured = measure_outcomes(members, reference, image_set, 16, text="heads")
    assert measured.reference is not None
    for facts, outcomes in zip(about, measured.models, strict=True):
        value, interval = paired_difference(outcomes.correct1, measured.reference.correct1)
        found.append(facts | {"kl": float(outcomes.divergence.mean()), "top1_difference": value, "interval": interval})
    return found


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", default="deit_tiny_patch16_224.fb_in1k")
    for name in ("--weights", "--calibration", "--images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--models", type=int, default=5, help="how many of the run's quantized models (calibration seeds)")
    options = parser.parse_args()
    found: dict[str, Any] = read_json(options.out) if options.out.is_file() else {"environment": environment()}
    original = Model.open(options.model, weights=options.weights)
    for path in sorted((options.run / "quantized").iterdir())[: options.models]:
        source = options.run / "statistics" / f"{path.name}-1000.safetensors"
        if not source.is_file():  # a run that is not finished
            continue
        statistics = Statistics.load(source)
        if path.name not in found.setdefault("correlations", {}):
            found["correlations"][path.name] = correlations(statistics)
            write_json(options.out, found)
        if path.name not in found.setdefault("constant", {}):
            counts = level_counts(Artifact.load(path), options.calibration, LEVEL_IMAGES)
            found["constant"][path.name] = constants(statistics, counts)
            write_json(options.out, found)
        print(f"{path.name}: done", flush=True)
    if "heads" not in found:
        import vitfrost

        statistics = vitfrost.calibrate(original, options.calibration, vitfrost.Calibrate(limit=1000))
        found["heads"] = heads_alone(original, statistics, options.images)
        write_json(options.out, found)
    rows = found["heads"]
    for measure in ("kl", "top1_difference"):
        result = spearmanr([row["entropy"] for row in rows], [row[measure] for row in rows])
        found[f"heads_entropy_to_{measure}"] = {"spearman": float(result.statistic), "p": float(result.pvalue)}
    write_json(options.out, found)


if __name__ == "__main__":
    main()
