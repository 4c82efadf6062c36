"""The verb calibrate: images through a model, statistics of its attention maps out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import distributed
from ..configs import Calibrate, expect
from ..errors import VitfrostError
from ..files import refuse_unwritable
from ..images.batches import BatchLoader, images_hash, name_skipped
from ..images.given import ImagesLike, find_given
from ..images.preprocess import Preprocess
from ..model import Model, ModelLike, as_model
from ..outputs import OutputKind
from ..plans.schema import structure_of
from ..progress import track
from ..torch_state import usual_torch
from ..vit.families import find_sites, install_map_attention
from ..vit.sites import AttentionSite
from .collector import MapCollector, group_sites
from .head_collector import HeadCollector, bytes_needed, images_at_a_time
from .heads import HeadStatistics
from .histogram import MAX_IMAGES
from .record import ENTRIES_VERSION, FORMAT_VERSION, Statistics, StatisticsHeader
from .sensitivity import drawn_score
from .similarity import SimilaritySums, kept_bytes
from .site import SiteStatistics

__all__ = ["MapCollector", "calibrate"]

Watcher = Callable[[Sequence[AttentionSite], int], MapCollector | HeadCollector]

BYTES_PER_GB = 1e9
MOST_PASSES = 4  # beyond them whole heads are measured, unless a person wants every weight

_log = logging.getLogger("vitfrost")


@usual_torch()
def calibrate(
    model: ModelLike,
    images: ImagesLike,
    config: Calibrate = Calibrate(),
    *,
    out: str | Path | None = None,
    progress: bool = True,
) -> Statistics:
    """Collect the statistics of every attention weight over images, or of whole heads where that are too many (`config.detail`).

    `images`: a folder, or any iterable of tensors or (tensor, label) pairs (see images.given). `config.maps` chooses the side of the map
    quantizer: before (softmax output) or after it and the frozen entries.
    Memory does not grow with the number of images; where the counters of all sites exceed `config.memory_limit`, the images
    pass several times, for some sites each. Statistics of whole heads take one pass. `out` is written whole or not at all. Under torchrun
    every process takes its
    share of the batches; the result is that of one process and every process returns it (`out` is needed then).
    `sensitivity` also takes the gradient by every attention weight (see statistics.sensitivity; quantizers let it straight
    through), at the cost of a backward pass and of keeping a batch's activations. Its sums are floating point: they agree
    with those of another number of processes to rounding; the counters are the same bits with and without.
    `similarity` also compares the heads' logits within and across layers (see statistics.similarity), which a plan that hallucinates
    heads needs. The logits of one batch are kept meanwhile, which counts towards `memory_limit`.

    Raises VitfrostError for bad arguments, a model or folder that cannot be used, or when no image is usable.
    """
    expect(Calibrate, config, "config")
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
    watched = _copied(loaded.module, config) if isinstance(model, Model) else loaded.module  # a caller's own stays as it is
    attention = install_map_attention(watched)
    sites = [module.site for module in attention.values()]
    if config.maps == "after" and not any(module.map_quantizer or module.frozen for module in attention.values()):
        raise VitfrostError(f"Calibrate.maps is 'after', but {loaded.name} has neither quantized maps nor frozen weights; leave it out")
    if config.similarity and (blind := [name for name, module in attention.items() if module.logit_heads < module.site.heads]):
        raise VitfrostError(f"{blind[0]} has hallucinated heads, which have no logits to compare; leave Calibrate.similarity out")
    groups = _passes(sites, config)
    by_head = groups is None
    batch_size = images_at_a_time(sites, config.batch_size) if by_head else config.batch_size
    groups = [list(sites)] if groups is None else groups
    image_set = find_given(images, several=len(groups) > 1).subset(config.limit, config.seed)
    loader = BatchLoader(image_set, Preprocess(loaded.preprocessing), batch_size, rank=distributed.rank(), world=distributed.world())
    with distributed.shared_errors():
        compared = SimilaritySums(sites) if config.similarity else None
        watch = _watcher(watched, config, compared, by_head)
        drawn_by = (loaded.outputs, config.seed) if config.sensitivity else None
        collected = _collect(watched, watch, groups, loader, drawn_by, progress)
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
        version=FORMAT_VERSION if by_head else ENTRIES_VERSION,
        detail="heads" if by_head else "entries",
    )
    statistics = Statistics(header, collected, None if compared is None else compared.sums)
    if distributed.world() > 1:
        return _join(statistics, loader, Path(str(out)))
    if out is not None:
        statistics.save(out)
    return statistics


def _copied(module: nn.Module, config: Calibrate) -> nn.Module:
    """A module whose layers can be replaced; its weights are the same tensors unless gradients are taken."""
    shared = () if config.sensitivity else (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def _passes(sites: Sequence[AttentionSite], config: Calibrate) -> list[list[AttentionSite]] | None:
    """The sites whose weights are counted in each pass over the images; None: whole heads are measured.

    Raises VitfrostError where what is wanted does not fit into the memory limit.
    """
    limit = config.memory_limit * BYTES_PER_GB
    kept = kept_bytes(sites, config.batch_size) if config.similarity else 0
    if config.detail != "heads":
        try:
            groups = group_sites(sites, limit, config.sensitivity, kept)
        except VitfrostError:
            if config.detail == "entries" or config.similarity:
                raise
        else:
            if config.detail == "entries" or config.similarity or len(groups) <= MOST_PASSES:
                return groups
        _log.warning(
            "calibrate: %s attention weights are too many to count each; whole heads are measured (Calibrate.detail is 'heads')",
            f"{sum(site.entries for site in sites):,}",
        )
    if config.similarity:
        raise VitfrostError("Calibrate.similarity compares the logits of every weight, and detail is 'heads'; leave one out")
    needed = bytes_needed(sites, config.sensitivity)
    if needed > limit:
        raise VitfrostError(
            f"the sums of whole heads need {needed / 1e9:.1f} GB, more than the memory limit of {config.memory_limit:.1f} GB; raise it"
        )
    return None


def _watcher(model: nn.Module, config: Calibrate, compared: SimilaritySums | None, by_head: bool) -> Watcher:
    """What makes the collector of a pass over the images, of its sites and its number."""
    after = config.maps == "after"
    if by_head:
        return lambda sites, _: HeadCollector(model, sites, after, config.sensitivity)
    return lambda sites, number: MapCollector(model, sites, after, config.sensitivity, compared if number == 1 else None)


def _collect(
    model: nn.Module,
    watch: Watcher,
    groups: list[list[AttentionSite]],
    loader: BatchLoader,
    drawn_by: tuple[OutputKind, int] | None,
    progress: bool,
) -> Any:
    """Let the images pass once per group of sites, and gradients back where there is a kind of outputs, with a seed to draw by.

    Heads of all sites are compared in the first pass.
    """
    sensitivity = drawn_by is not None
    if sensitivity:
        model.requires_grad_(False)  # gradients are only wanted from the outputs back to the first map
    collected: dict[str, SiteStatistics | HeadStatistics] = {}
    digests = None
    device = next(model.parameters()).device
    for number, sites in enumerate(groups, 1):
        text = "calibrate" if len(groups) == 1 else f"calibrate, pass {number} of {len(groups)}"
        with watch(sites, number) as collector, torch.inference_mode(not sensitivity):
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
