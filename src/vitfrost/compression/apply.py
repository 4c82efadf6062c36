"""The verb `compress`: a plan applied to a model, in the order quantise (RepQ-ViT), then freeze."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artefact import Artefact, build_frozen, save_artefact, settings_of
from ..errors import VitfrostError
from ..files import refuse_existing
from ..images.batches import images_hash, take_usable
from ..images.preprocess import Preprocess
from ..images.source import open_images
from ..plans.choose import frozen_maps
from ..plans.schema import Plan, check_fits, load_plan
from ..quantize.repq import QuantizationSettings, map_quantizers, quantize_model
from ..statistics.record import Statistics
from ..vit.families import allowed_pairs, find_sites, install_map_attention
from ..vit.load import LoadedModel, load_model
from .frozen import FrozenMaps, frozen_step

CALIBRATION_IMAGES = 32


def frozen_modules(model: nn.Module, plan: Plan, statistics: Statistics) -> dict[str, FrozenMaps]:
    """The frozen entries that the plan names for `model`, by site; below 32 bits on the log grid of the layer's map quantiser.

    Sites without frozen entries are left out. The model is not changed.
    """
    if plan.freeze is None:
        return {}
    quantizers = map_quantizers(model)
    made: dict[str, FrozenMaps] = {}
    for layer in plan.layers:
        if not any(head.entries for head in layer.heads):
            continue
        chosen, means = frozen_maps(plan, statistics.sites[layer.site], layer)
        mask, values = torch.from_numpy(chosen), torch.from_numpy(means)
        frozen = build_frozen(plan, mask, allowed_pairs(model, layer.site))
        step = None
        if plan.freeze.bits != 32:
            own = quantizers[layer.site].step if layer.site in quantizers else None
            step = frozen_step(values, mask, plan.freeze.bits, plan.quantize.levels, plan.freeze.grid, own)
        frozen.set_values(values, step)
        made[layer.site] = frozen
    return made


def freeze_model(model: nn.Module, plan: Plan, statistics: Statistics) -> nn.Module:
    """Freeze the entries that the plan names, in place."""
    attention = install_map_attention(model)
    for site, frozen in frozen_modules(model, plan, statistics).items():
        attention[site].frozen = frozen
    return model


def draw_calibration(loaded: LoadedModel, images: str | Path, count: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The calibration batch [count, 3, height, width], a seeded draw from the folder, and the record of what was drawn."""
    image_set = open_images(images)
    drawn = image_set.subset(len(image_set), seed)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), count)
    record = {"images": len(batch.positions), "images_hash": images_hash(drawn, batch.digests), "seed": seed, "skipped": len(batch.skipped)}
    return batch.pixels, record


def _settings_record(settings: QuantizationSettings) -> dict[str, Any]:
    return {
        "method": "RepQ-ViT",
        "weight_bits": settings.weight_bits,
        "activation_bits": settings.activation_bits,
        "levels": settings.levels,
    }


def _check_statistics(plan: Plan, statistics: Statistics | None) -> None:
    if not any(head.entries for layer in plan.layers for head in layer.heads):
        return
    if statistics is None:
        raise VitfrostError("the plan freezes maps, which needs the statistics it was made from; give --statistics FILE")
    if plan.statistics is None or plan.statistics.hash != statistics.content_hash:
        raise VitfrostError("the plan was made from other statistics than these; give the file it was made from, or plan again")


def compress(
    model: str | LoadedModel,
    plan: Plan | str | Path,
    *,
    statistics: Statistics | str | Path | None = None,
    images: str | Path | None = None,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    seed: int = 0,
    calibration_images: int = CALIBRATION_IMAGES,
    recipe: dict[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Artefact:
    """Quantise a model with RepQ-ViT and freeze the plan's entries; save the artefact where `out` is given.

    `images` is the folder from which `calibration_images` images are drawn with `seed` (needed where activations are
    quantised); `statistics` the ones the plan was made from (needed where it freezes). The model itself is not changed.
    Raises VitfrostError when plan, statistics and model do not belong together.
    """
    if out is not None:
        refuse_existing(Path(out), overwrite)
    if calibration_images < 1:
        raise VitfrostError(f"calibration images must be at least 1, got {calibration_images}")
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    if statistics is not None and not isinstance(statistics, Statistics):
        statistics = Statistics.load(statistics)
    _check_statistics(plan, statistics)
    loaded = model if isinstance(model, LoadedModel) else load_model(model, weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode)
    sites = find_sites(loaded.model)
    check_fits(plan, loaded.identity(), sites.signature())
    settings = settings_of(plan)
    pixels, quantization = None, None
    seeds: dict[str, int] = {}
    if settings.activations:
        if images is None:
            raise VitfrostError("quantising activations needs calibration images; give --images DIR or set the activation bits to 32")
        pixels, drawn = draw_calibration(loaded, images, calibration_images, seed)
        quantization = _settings_record(settings) | drawn
        seeds["calibration"] = seed
    elif settings.any:
        quantization = _settings_record(settings)
    compressed = copy.deepcopy(loaded.model)
    quantize_model(compressed, sites, settings, pixels)
    source = None
    if statistics is not None:
        header = statistics.header
        freeze_model(compressed, plan, statistics)
        source = {
            "hash": statistics.content_hash,
            "images": header.images,
            "images_hash": header.images_hash,
            "precision": header.precision,
            "seed": header.seed,
        }
        if header.seed is not None:
            seeds["statistics"] = header.seed
    if plan.freeze is not None:
        seeds["plan"] = plan.freeze.seed
    artefact = Artefact(
        compressed.eval(), loaded.name, loaded.image_size, loaded.weight_tag, loaded.state_hash, loaded.preprocessing, loaded.classes,
        loaded.options, plan=plan, quantization=quantization, statistics=source, seeds=seeds, recipe=recipe,
    )  # fmt: skip
    if out is not None:
        save_artefact(artefact, out, overwrite)
    return artefact
