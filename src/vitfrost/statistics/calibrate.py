"""The verb calibrate: images through a model, statistics of its attention maps out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import distributed
from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..images.batches import BatchLoader, images_hash
from ..images.preprocess import Preprocess
from ..images.source import open_images
from ..models import open_model
from ..plans.schema import structure_of
from ..progress import track
from ..vit.attention import MapAttention
from ..vit.families import find_sites, install_map_attention
from ..model import Model
from ..vit.load import create_model
from ..vit.sites import AttentionSite
from .collector import MapCollector, group_sites
from .histogram import MAX_IMAGES
from .record import SiteStatistics, Statistics, StatisticsHeader
from .sensitivity import drawn_log_likelihood
from .similarity import SimilaritySums, kept_bytes

__all__ = ["MapCollector", "calibrate"]

DEFAULT_MEMORY_LIMIT = 4e9


def calibrate(
    model: str | Path | Model,
    images: str | Path,
    *,
    limit: int | None = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    batch_size: int = 16,
    maps: str = "before",
    memory_limit: float | int = DEFAULT_MEMORY_LIMIT,
    sensitivity: bool = False,
    similarity: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Statistics:
    """Collect the statistics of every attention weight over `limit` images of a folder, drawn by `seed`.

    `model` is a timm name (with `weights` and `image_size` as in `load_model`), a Model, or an artifact folder.
    `maps` chooses the side of the map quantizer: before (softmax output) or after it and the frozen entries.
    Memory does not grow with the number of images; where the counters of all sites exceed `memory_limit` bytes, the images
    pass several times, for some sites each. `out` is written whole or not at all. Under torchrun every process takes its
    share of the batches; the result is that of one process and every process returns it (`out` is needed then).
    `sensitivity` also takes the gradient by every attention weight (see statistics.sensitivity; quantizers let it straight
    through), at the cost of a backward pass and of keeping a batch's activations. Its sums are floating point: they agree
    with those of another number of processes to rounding; the counters are the same bits with and without.
    `similarity` also compares the heads' logits within and across layers (see statistics.similarity), which a plan that hallucinates
    heads needs. The logits of one batch are kept meanwhile, which counts towards `memory_limit`.
    `device`: "cpu" or "cuda" (None: the CPU, or where a Model is).

    Raises VitfrostError for bad arguments, a model or folder that cannot be used, or when no image is usable.
    """
    if maps not in ("before", "after"):
        raise VitfrostError(f"maps must be 'before' or 'after' the map quantizer, not '{maps}'")
    if limit is not None and limit > MAX_IMAGES:
        raise VitfrostError(f"cannot calibrate on {limit} images; at most {MAX_IMAGES} fit into the counters")
    if out is not None:
        refuse_unwritable(out)
    elif distributed.world() > 1:
        raise VitfrostError("calibrate in several processes needs a file to write; add out (--out FILE)")
    loaded = open_model(model, weights, image_size, crop_pct=crop_pct, crop_mode=crop_mode, device=device)
    image_set = open_images(images).subset(limit, seed)
    if sensitivity and loaded.classes < 2:
        raise VitfrostError(f"sensitivity is that of a prediction, but {loaded.name} has {loaded.classes} classes; it needs at least 2")
    feed_forward = _feed_forward_sites(loaded)
    watched = copy.deepcopy(loaded.module) if isinstance(model, Model) else loaded.module  # a caller's own stays as it is
    attention = install_map_attention(watched)
    sites = [module.site for module in attention.values()]
    if similarity and (blind := [name for name, module in attention.items() if module.logit_heads < module.site.heads]):
        raise VitfrostError(f"{blind[0]} has hallucinated heads, which have no logits of their own to compare; leave similarity out")
    groups = group_sites(sites, memory_limit, sensitivity, kept_bytes(sites, batch_size) if similarity else 0)
    loader = BatchLoader(image_set, Preprocess(loaded.preprocessing), batch_size, rank=distributed.rank(), world=distributed.world())
    with distributed.shared_errors():
        compared = SimilaritySums(sites) if similarity else None
        collected = _collect(watched, groups, loader, maps == "after", seed if sensitivity else None, compared, progress)
    quantization = getattr(loaded, "quantization", None)
    header = StatisticsHeader(
        model=loaded.identity,
        sites=[site.signature() for site in sites],
        precision="fp32" if quantization is None else "quantized",
        observed=maps,
        quantization=quantization,
        images=len(loader.digests),
        skipped=len(loader.skipped),
        images_hash=images_hash(image_set, loader.digests),
        seed=seed,
        limit=limit,
        sensitivity=sensitivity,
        similarity=similarity,
        feed_forward=feed_forward,
        structure=structure_of(getattr(loaded, "plan", None)),
    )
    statistics = Statistics(header, collected, None if compared is None else compared.sums)
    if distributed.world() > 1:
        return _join(statistics, loader, Path(str(out)))
    if out is not None:
        statistics.save(out)
    return statistics


def _feed_forward_sites(loaded: Model) -> list[dict[str, Any]]:
    """What a plan needs to know of the original's feed-forward sites."""
    changed = any(isinstance(module, MapAttention) for module in loaded.module.modules())
    model = create_model(loaded.name, loaded.image_size, **loaded.options) if changed else loaded.module
    return [site.signature() | {"block": site.block} for site in find_sites(model).feed_forward]


def _collect(
    model: nn.Module,
    groups: list[list[AttentionSite]],
    loader: BatchLoader,
    observe_quantized: bool,
    draw_seed: int | None,
    compared: SimilaritySums | None,
    progress: bool,
) -> dict[str, SiteStatistics]:
    """Let the images pass once per group of sites, and gradients back where there is a seed to draw the classes by.

    Heads of all sites are compared in the first pass.
    """
    sensitivity = draw_seed is not None
    if sensitivity:
        model.requires_grad_(False)  # gradients are only wanted from the outputs back to the first map
    batches = -(-len(loader.image_set) // (loader.batch_size * distributed.world()))
    collected: dict[str, SiteStatistics] = {}
    digests = None
    device = next(model.parameters()).device
    for number, sites in enumerate(groups, 1):
        text = "calibrate" if len(groups) == 1 else f"calibrate, pass {number} of {len(groups)}"
        once = compared if number == 1 else None
        with MapCollector(model, sites, observe_quantized, sensitivity, once) as collector, torch.inference_mode(not sensitivity):
            for batch in track(loader, batches, text, progress and distributed.rank() == 0):
                pixels = batch.pixels.to(device)
                if draw_seed is None:
                    model(pixels)
                else:
                    drawn_log_likelihood(model(pixels), batch.positions, draw_seed).backward()
        if digests is not None and digests != loader.digests:
            raise VitfrostError(f"the images in {loader.image_set.root} changed while they were read; calibrate again")
        digests = loader.digests
        collected |= collector.finish()
    return collected


def _join(part: Statistics, loader: BatchLoader, out: Path) -> Statistics:
    """Merge the statistics of all processes through files beside `out`; every process returns the whole."""

    def place(rank: int) -> Path:
        return out.parent / f".{out.name}.rank{rank}.part"

    own = place(distributed.rank())
    try:
        with distributed.shared_errors():
            part.save(own)
        digests: dict[int, str] = {}
        for share in distributed.gather_objects(loader.digests):
            digests |= share
        with distributed.shared_errors():
            if not digests:
                raise VitfrostError(f"none of the {len(loader.image_set)} images of {loader.image_set.root} is usable")
            if distributed.rank() == 0:
                merged = Statistics.merge(Statistics.load(place(rank)) for rank in range(distributed.world()))
                header = replace(merged.header, images_hash=images_hash(loader.image_set, digests))
                Statistics(header, merged.sites, merged.similarity).save(out)
    finally:
        own.unlink(missing_ok=True)
    return Statistics.load(out)
