"""The verb `compress`: a plan applied to a model: hallucinate, freeze heads, compact, repair, quantize (RepQ-ViT), freeze entries."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifact import Artifact, build_frozen, settings_of
from ..errors import VitfrostError
from ..files import refuse_existing
from ..images.batches import BatchLoader, images_hash, take_usable
from ..images.given import ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..methods.frozen_entries import FrozenMaps, frozen_step
from ..methods.quantize.repq import QuantizationSettings, map_quantizers, quantize_model
from ..methods.repair.options import RepairOptions, repair_options
from ..methods.repair.refit import Repair
from ..model import Model, ModelLike, as_model
from ..plans.choose import frozen_maps
from ..plans.file import load_plan
from ..plans.fits import check_fits
from ..plans.freeze_heads import Constant, constants_of
from ..plans.schema import Plan, structure_of
from ..statistics.record import Statistics
from ..vit.attention import MapAttention
from ..vit.families import allowed_pairs, find_sites, install_map_attention
from ..vit.load import device_of
from ..vit.sites import ModelSites
from .quality import hallucinated_heads
from .structure import changed_sites, has_structure, start_from

CALIBRATION_IMAGES = 32
COMPACT_IMAGES = 256
DISTANCE_IMAGES = 32
REPAIR_IMAGES = 300
REPAIR_BATCH = 25


def frozen_modules(model: nn.Module, plan: Plan, statistics: Statistics) -> dict[str, FrozenMaps]:
    """The frozen entries that the plan names for `model`, by site; below 32 bits on the log grid of the layer's map quantizer.

    Sites without frozen entries are left out. The model is not changed; what is made lies where the model does.
    """
    if plan.freeze is None:
        return {}
    quantizers = map_quantizers(model)
    orders = {name: list(module.order) for name, module in model.named_modules() if isinstance(module, MapAttention)}
    made: dict[str, FrozenMaps] = {}
    for layer in plan.layers:
        if not any(head.entries for head in layer.heads):
            continue
        chosen, means = frozen_maps(plan, statistics.sites[layer.site], layer)
        order = orders.get(layer.site, slice(None))
        mask, values = torch.from_numpy(chosen)[:, order], torch.from_numpy(means)[:, order]
        frozen = build_frozen(plan, mask, allowed_pairs(model, layer.site))
        step = None
        if plan.freeze.bits != 32:
            own = quantizers[layer.site].step.cpu() if layer.site in quantizers else None
            step = frozen_step(values, mask, plan.freeze.bits, plan.quantize.levels, plan.freeze.grid, own)
        frozen.set_values(values, step)
        made[layer.site] = frozen.to(device_of(model))
    return made


def freeze_model(model: nn.Module, plan: Plan, statistics: Statistics) -> nn.Module:
    """Freeze the entries that the plan names, in place."""
    attention = install_map_attention(model)
    for site, frozen in frozen_modules(model, plan, statistics).items():
        attention[site].frozen = frozen
    return model


def draw_calibration(loaded: Model, images: ImagesLike, count: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The calibration batch [count, 3, height, width], a seeded draw from the folder, and the record of what was drawn."""
    drawn = find_given(images).shuffled(seed)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), count)
    record = {"images": len(batch.positions), "images_hash": images_hash(drawn, batch.digests), "seed": seed, "skipped": len(batch.skipped)}
    return batch.pixels, record


def _repair(
    changed: nn.Module,
    loaded: Model,
    sites: ModelSites,
    options: RepairOptions,
    images: ImagesLike,
    count: int,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Repair in place. Returns the record: how, on what, and what was left of the stream at every layer."""
    drawn = find_given(images).subset(count, seed)
    loader = BatchLoader(drawn, Preprocess(loaded.preprocessing), REPAIR_BATCH)
    original = copy.deepcopy(loaded.module).cpu()  # where the changed model is repaired, and without what a caller has hooked to it
    repair = Repair(changed, original, sites, options)
    layers = repair.run((batch.pixels for batch in loader), loader.expected, progress)
    return options.plain() | {
        "skip_last": repair.skipped,
        "images": len(loader.digests),
        "images_hash": images_hash(drawn, loader.digests),
        "seed": seed,
        "skipped": len(loader.skipped),
        "layers": layers,
    }


def _settings_record(settings: QuantizationSettings) -> dict[str, Any]:
    return {
        "method": "RepQ-ViT",
        "weight_bits": settings.weight_bits,
        "activation_bits": settings.activation_bits,
        "levels": settings.levels,
    }


def _check_statistics(plan: Plan, statistics: Statistics | None, made: bool) -> None:
    freezes = any(head.entries for layer in plan.layers for head in layer.heads)
    freezes |= not made and plan.statistics is not None and any(layer.constant for layer in plan.layers)
    mixes = not made and plan.statistics is not None and plan.hallucinate is not None and plan.hallucinate.fits_mix
    if not freezes and not mixes:
        return
    if statistics is None:
        what = "freezes maps" if freezes else "mixes maps as their similarity tells"
        raise VitfrostError(f"the plan {what}, which needs the statistics it was made from; give --statistics FILE")
    if plan.statistics is None or plan.statistics.hash != statistics.content_hash:
        raise VitfrostError("the plan was made from other statistics than these; give the file it was made from, or plan again")


def _give_structure(
    model: nn.Module, loaded: Model, plan: Plan, statistics: Statistics | None, images: ImagesLike | None, count: int, seed: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Hallucinate and compact in place. Returns the record of what it was fitted to and how well it fits, and the seed of the draw."""
    pixels: torch.Tensor | None = None
    record: dict[str, Any] = {}
    if images is not None:
        pixels, record = draw_calibration(loaded, images, count, seed)
    similarity = similarity_of(plan, statistics)
    errors = start_from(model, plan, pixels, similarity, constants=fitted_constants(plan, statistics), seed=seed)
    heads = hallucinated_heads(plan, model, similarity, None if pixels is None else (loaded.module, pixels[:DISTANCE_IMAGES]))
    return record | {"relative_errors": errors, "heads": heads}, {"structure": seed} if record else {}


def _check_structure(made: Plan, plan: Plan) -> None:
    """Raise VitfrostError unless the plan goes on from what an artifact was made with."""
    if made.freeze is not None or settings_of(made).any:
        raise VitfrostError("the artifact is quantized or frozen already; compress the model that it was made from, or a trained artifact")
    if structure_of(made) != structure_of(plan):
        raise VitfrostError(
            "the plan has other hallucinated heads or compact blocks than the artifact; calibrate the artifact and plan again"
        )


def fitted_constants(plan: Plan, statistics: Statistics | None) -> dict[str, list[Constant]] | None:
    """The constants of the plan's frozen heads by site, fitted to the mean maps; None without statistics."""
    if statistics is None:
        return None
    return {layer.site: constants_of(layer, statistics.sites[layer.site], plan.model.image_size) for layer in plan.layers if layer.constant}


def similarity_of(plan: Plan, statistics: Statistics | None) -> dict[str, torch.Tensor] | None:
    """The heads' second moments by site, where the statistics have them."""
    if plan.hallucinate is None or statistics is None or (statistics.similarity is None and not plan.hallucinate.fits_mix):
        return None
    return {layer.site: torch.from_numpy(statistics.head_moments(layer.site)) for layer in plan.layers if layer.hallucinated}


def compress(
    model: ModelLike,
    plan: Plan | str | Path,
    *,
    statistics: Statistics | str | Path | None = None,
    images: ImagesLike | None = None,
    seed: int = 0,
    calibration_images: int = CALIBRATION_IMAGES,
    compact_images: int = COMPACT_IMAGES,
    repair: str | RepairOptions | None = None,
    repair_images: int = REPAIR_IMAGES,
    repair_penalty: float | None = None,
    progress: bool = False,
    recipe: dict[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Apply a plan to a model: hallucinate and compact in closed form, repair, quantize with RepQ-ViT, freeze; save the artifact to `out`.

    `images` is the folder from which, with `seed`, `calibration_images` images are drawn where activations are quantized and
    `compact_images` where compact blocks fit activations; `statistics` the ones the plan was made from (needed where it freezes
    or hallucinates). `repair` ("ridge" or "bias") re-fits output projections and second feed-forward projections on `repair_images`
    images (see repair.refit), to the structure alone where activations are quantized, else to frozen maps too; `repair_penalty` (None:
    the default of RepairOptions) holds the weights to what they were. The model itself is not changed. It may be an artifact (or its
    folder), such as a trained one, that is neither quantized nor frozen: its structure stays, the plan has to be made from statistics
    of it, and a repair aims at it.
    Raises VitfrostError when plan, statistics and model do not belong together.
    """
    if out is not None:
        refuse_existing(Path(out), overwrite)
    for what, number in (("calibration images", calibration_images), ("compact images", compact_images), ("repair images", repair_images)):
        if number < 1:
            raise VitfrostError(f"{what} must be at least 1, got {number}")
    repairs = repair_options(repair, repair_penalty)
    if repairs is not None and images is None:
        raise VitfrostError("a repair is fitted to images, which need no labels; give --images DIR")
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    if statistics is not None and not isinstance(statistics, Statistics):
        statistics = Statistics.load(statistics)
    images = None if images is None else find_given(images, several=True)
    loaded = as_model(model)
    given = loaded if isinstance(loaded, Artifact) else None
    _check_statistics(plan, statistics, given is not None)
    sites = find_sites(loaded.module if given is None else loaded.blank())
    check_fits(plan, loaded.identity, sites.signature(), [site.signature() for site in sites.feed_forward])
    if given is not None:
        _check_structure(given.plan, plan)
    settings = settings_of(plan)
    pixels, quantization = None, None
    seeds: dict[str, int] = {} if given is None else dict(given.seeds)
    if settings.activations:
        if images is None:
            raise VitfrostError("quantizing activations needs calibration images; give --images DIR or set the activation bits to 32")
        pixels, drawn = draw_calibration(loaded, images, calibration_images, seed)
        quantization = _settings_record(settings) | drawn
        seeds["calibration"] = seed
    elif settings.any:
        quantization = _settings_record(settings)
    compressed = copy.deepcopy(loaded.module).cpu()  # once, and in seconds: the same bits wherever the model runs
    structure = None if given is None else given.structure
    if has_structure(plan):
        sites = changed_sites(sites, plan)
    if has_structure(plan) and given is None:
        structure, drawn_seed = _give_structure(compressed, loaded, plan, statistics, images, compact_images, seed)
        seeds |= drawn_seed
    repaired = None
    freezes_first = not settings.activations  # constants lie on the grid of the map quantizers, where there are any
    if freezes_first and statistics is not None:
        freeze_model(compressed, plan, statistics)
    if repairs is not None:
        assert images is not None
        repaired = _repair(compressed, loaded, sites, repairs, images, repair_images, seed, progress)
        seeds["repair"] = seed
    quantize_model(compressed, sites, settings, pixels)
    source = None
    if statistics is not None:
        header = statistics.header
        if not freezes_first:
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
    artifact = Artifact.made_from(
        loaded, compressed, plan=plan, quantization=quantization, statistics=source, structure=structure, seeds=seeds, recipe=recipe,
        training=None if given is None else given.training,
        repair=repaired or (None if given is None else given.repair),
    )  # fmt: skip
    if out is not None:
        artifact.save(out, overwrite)
    return artifact
