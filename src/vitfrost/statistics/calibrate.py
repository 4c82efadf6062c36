"""The verb calibrate: images through a model, statistics of its attention maps out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from .. import distributed
from ..configs import Calibrate
from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..images.batches import BatchLoader, images_hash, name_skipped
from ..images.given import ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..model import Model, ModelLike, as_model
from ..outputs import OutputKind
from ..plans.schema import structure_of
from ..progress import track
from ..vit.families import find_sites, install_map_attention
from ..vit.sites import AttentionSite
from .collector import MapCollector, group_sites
from .histogram import MAX_IMAGES
from .record import SiteStatistics, Statistics, StatisticsHeader
from .sensitivity import drawn_score
from .similarity import SimilaritySums, kept_bytes

__all__ = ["MapCollector", "calibrate"]

BYTES_PER_GB = 1e9


def calibrate(
    model: ModelLike,
    images: ImagesLike,
    config: Calibrate = Calibrate(),
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> Statistics:
    """Collect the statistics of every attention weight over images.

    `images`: a folder, or any iterable of tensors or (tensor, label) pairs (see images.given). `config.maps` chooses the side of the map
    quantizer: before (softmax output) or after it and the frozen entries.
    Memory does not grow with the number of images; where the counters of all sites exceed `config.memory_limit`, the images
    pass several times, for some sites each. `out` is written whole or not at all. Under torchrun every process takes its
    share of the batches; the result is that of one process and every process returns it (`out` is needed then).
    `sensitivity` also takes the gradient by every attention weight (see statistics.sensitivity; quantizers let it straight
    through), at the cost of a backward pass and of keeping a batch's activations. Its sums are floating point: they agree
    with those of another number of processes to rounding; the counters are the same bits with and without.
    `similarity` also compares the heads' logits within and across layers (see statistics.similarity), which a plan that hallucinates
    heads needs. The logits of one batch are kept meanwhile, which counts towards `memory_limit`.

    Raises VitfrostError for bad arguments, a model or folder that cannot be used, or when no image is usable.
    """
    if config.limit is not None and config.limit > MAX_IMAGES:
        raise VitfrostError(f"cannot calibrate on {config.limit} images; at most {MAX_IMAGES} fit into the counters")
    if out is not None:
        refuse_unwritable(out)
    elif distributed.world() > 1:
        raise VitfrostError("calibrate in several processes needs a file to write; add out (--out FILE)")
    loaded = as_model(model)
    if config.sensitivity and loaded.outputs == "classes" and loaded.classes < 2:
        raise VitfrostError(f"sensitivity is that of a prediction, but {loaded.name} has {loaded.classes} classes; it needs at least 2")
    feed_forward = [site.signature() | {"block": site.block} for site in find_sites(loaded.blank()).feed_forward]
    watched = copy.deepcopy(loaded.module) if isinstance(model, Model) else loaded.module  # a caller's own stays as it is
    attention = install_map_attention(watched)
    sites = [module.site for module in attention.values()]
    if config.maps == "after" and not any(module.map_quantizer or module.frozen for module in attention.values()):
        raise VitfrostError(f"Calibrate.maps is 'after', but {loaded.name} has neither quantized maps nor frozen weights; leave it out")
    if config.similarity and (blind := [name for name, module in attention.items() if module.logit_heads < module.site.heads]):
        raise VitfrostError(f"{blind[0]} has hallucinated heads, which have no logits to compare; leave Calibrate.similarity out")
    kept = kept_bytes(sites, config.batch_size) if config.similarity else 0
    groups = group_sites(sites, config.memory_limit * BYTES_PER_GB, config.sensitivity, kept)
    image_set = find_given(images, several=len(groups) > 1).subset(config.limit, config.seed)
    loader = BatchLoader(image_set, Preprocess(loaded.preprocessing), config.batch_size, rank=distributed.rank(), world=distributed.world())
    with distributed.shared_errors():
        compared = SimilaritySums(sites) if config.similarity else None
        collected = _collect(
            watched, groups, loader, config.maps == "after", (loaded.outputs, config.seed) if config.sensitivity else None, compared,
            progress,
        )  # fmt: skip
    name_skipped(image_set, loader.skipped, len(loader.digests))
    quantization = getattr(loaded, "quantization", None)
    header = StatisticsHeader(
        model=loaded.identity,
        sites=[site.signature() for site in sites],
        precision="fp32" if quantization is None else "quantized",
        observed=config.maps,
        quantization=quantization,
        images=len(loader.digests),
        skipped=len(loader.skipped),
        images_hash=images_hash(image_set, loader.digests),
        seed=config.seed,
        limit=config.limit,
        sensitivity=config.sensitivity,
        similarity=config.similarity,
        feed_forward=feed_forward,
        structure=structure_of(getattr(loaded, "plan", None)),
    )
    statistics = Statistics(header, collected, None if compared is None else compared.sums)
    if distributed.world() > 1:
        return _join(statistics, loader, Path(str(out)))
    if out is not None:
        statistics.save(out)
    return statistics


def _collect(
    model: nn.Module,
    groups: list[list[AttentionSite]],
    loader: BatchLoader,
    observe_quantized: bool,
    drawn_by: tuple[OutputKind, int] | None,
    compared: SimilaritySums | None,
    progress: bool,
) -> dict[str, SiteStatistics]:
    """Let the images pass once per group of sites, and gradients back where there is a kind of outputs, with a seed to draw by.

    Heads of all sites are compared in the first pass.
    """
    sensitivity = drawn_by is not None
    if sensitivity:
        model.requires_grad_(False)  # gradients are only wanted from the outputs back to the first map
    collected: dict[str, SiteStatistics] = {}
    digests = None
    device = next(model.parameters()).device
    for number, sites in enumerate(groups, 1):
        text = "calibrate" if len(groups) == 1 else f"calibrate, pass {number} of {len(groups)}"
        once = compared if number == 1 else None
        with MapCollector(model, sites, observe_quantized, sensitivity, once) as collector, torch.inference_mode(not sensitivity):
            for batch in track(loader, loader.expected, text, progress and distributed.rank() == 0):
                pixels = batch.pixels.to(device)
                if drawn_by is None:
                    model(pixels)
                else:
                    kind, seed = drawn_by
                    drawn_score(kind, model(pixels), batch.positions, seed).backward()
        if digests is not None and digests != loader.digests:
            raise VitfrostError(
                f"the images of {loader.image_set.root} changed, or came in another order, when they were read again; calibrate again, "
                "with a loader that does not shuffle"
            )
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
                raise VitfrostError(f"none of the images of {loader.image_set.root} is usable")
            if distributed.rank() == 0:
                merged = Statistics.merge(Statistics.load(place(rank)) for rank in range(distributed.world()))
                header = replace(merged.header, images_hash=images_hash(loader.image_set, digests))
                Statistics(header, merged.sites, merged.similarity).save(out)
    finally:
        own.unlink(missing_ok=True)
    return Statistics.load(out)
