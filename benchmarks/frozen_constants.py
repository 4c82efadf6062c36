"""How well constants of few numbers stand for a model's mean maps, and how well they are carried over to another image size.

    vitfrost calibrate --model deit_tiny_patch16_224 --weights W --images DIR --limit 300 --out small.safetensors
    vitfrost calibrate --model deit_tiny_patch16_224 --weights W --image-size 384 --images DIR --limit 60 --memory-limit 9 \\
        --out large.safetensors
    python benchmarks/frozen_constants.py --statistics small.safetensors --larger large.safetensors --json frozen_constants.json

Errors are those at the layer's output, sum of (A^mu - c)^2 E||W_O v||^2, relative to what freezing the head to its mean map does,
sum of E[(A - A^mu)^2] E||W_O v||^2; of patches' rows and columns where two sizes are compared. Median, 90th percentile and maximum
over all heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from vitfrost.configs import Quantize
from vitfrost.files import write_json
from vitfrost.map_sources.frozen import fitted, shape_of
from vitfrost.methods.constant_heads.constants import StructuredMap, dense_of, stretched_window
from vitfrost.methods.constant_heads.kinds import KINDS
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.plans.freeze_heads import freezing_error, structure_error
from vitfrost.plans.heads import LayerPlan
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.site import SiteStatistics

COMPARED: list[tuple[str, int | None]] = [("toeplitz", None), *(("local", window) for window in (3, 5, 7, 9, 11, 15))]
CARRIED: list[tuple[str, int | None]] = [("toeplitz", None), ("local", 5), ("local", 7)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 90th percentile and maximum."""
    return {"median": float(np.median(values)), "p90": float(np.quantile(values, 0.9)), "max": float(np.max(values))}


def layers_of(statistics: Statistics) -> tuple[LayerPlan, ...]:
    return unfrozen_plan(statistics.header.model, statistics.header.sites, Quantize()).layers


def without_scales(constant: StructuredMap) -> StructuredMap:
    """The same kernel with one scale for all rows."""
    return StructuredMap(constant.kernel, constant.rest, np.ones_like(constant.row_scale), constant.prefix_rows, constant.prefix_columns)


def patch_error(known: SiteStatistics, head: int, whole: np.ndarray, prefix: int) -> float:
    """Error of the patches' part of a map, relative to that of freezing."""
    norm = known.value_norm[0, head, prefix:]
    wrong = ((known.mean[0, head, prefix:, prefix:] - whole[0, prefix:, prefix:]) ** 2 * norm).sum(dtype=np.float64)
    frozen = (known.variance[0, head, prefix:, prefix:] * norm).sum(dtype=np.float64)
    return float(wrong / frozen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--statistics", type=Path, required=True)
    parser.add_argument("--larger", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    statistics = Statistics.load(options.statistics)
    size = statistics.header.model.image_size
    found: dict[str, list[float]] = {}
    for layer in layers_of(statistics):
        known, shape = statistics.entries(layer.site), shape_of(layer, size)
        assert shape is not None
        for head in range(layer.maps[1]):
            frozen = freezing_error(known, head)
            for kind, window in COMPARED:
                name = kind if window is None else f"{kind} {window}"
                constant = fitted(known, shape, head, kind, window)
                found.setdefault(name, []).append(structure_error(KINDS[kind].whole(constant, shape, known.allowed), known, head) / frozen)
            mean, even = known.mean[:, head], np.ones_like(known.value_norm[:, head])
            flat = KINDS["toeplitz"].fit(mean / mean.sum(-1, keepdims=True), even, shape)
            found.setdefault("toeplitz, one scale for all rows", []).append(
                structure_error(dense_of(without_scales(flat), shape), known, head) / frozen
            )
            uniform = np.full_like(mean, 1 / shape.tokens)
            found.setdefault("uniform", []).append(structure_error(uniform, known, head) / frozen)
    result: dict[str, Any] = {
        "model": statistics.header.model.model_dump(mode="json"), "images": statistics.header.images,
        "images_hash": statistics.header.images_hash,
        "relative_to_freezing": {name: spread(values) for name, values in found.items()},
    }  # fmt: skip
    if options.larger is not None:
        result |= carried(statistics, Statistics.load(options.larger))
    write_json(options.json, result)
    for part in ("relative_to_freezing", "carried_over"):
        for name, row in result.get(part, {}).items():
            print(f"{part:22s} {name:36s}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


def carried(small: Statistics, large: Statistics) -> dict[str, object]:
    """Constants fitted at the small size and carried over, beside those fitted at the large size, on the large size's statistics."""
    found: dict[str, list[float]] = {}
    for before, after in zip(layers_of(small), layers_of(large), strict=True):
        shape, target = shape_of(before, small.header.model.image_size), shape_of(after, large.header.model.image_size)
        assert shape is not None
        assert target is not None
        source, known = small.entries(before.site), large.entries(after.site)
        for head in range(before.maps[1]):
            for kind, window in CARRIED:
                constant = fitted(source, shape, head, kind, window)
                assert isinstance(constant, StructuredMap)
                wider = None if window is None else stretched_window(window, shape, target)
                own = fitted(known, target, head, kind, wider)
                assert isinstance(own, StructuredMap)
                name = kind if window is None else f"{kind} {window} as {wider}"
                stretched = KINDS[kind].resized(constant, shape, target, wider)
                for how, made in (("carried over", stretched), ("fitted there", own)):
                    error = patch_error(known, head, dense_of(made, target), target.prefix_tokens)
                    found.setdefault(f"{name}, {how}", []).append(error)
            even = np.full((1, target.tokens, target.tokens), known.mean[0, head, 1:, 1:].sum(-1).mean() / target.patches)
            found.setdefault("uniform", []).append(patch_error(known, head, even, target.prefix_tokens))
    return {
        "larger": large.header.model.model_dump(mode="json"), "larger_images": large.header.images,
        "carried_over": {name: spread(values) for name, values in found.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
