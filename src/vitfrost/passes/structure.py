"""A plan's structure: attention layers with fewer queries and keys, whose other heads' maps come from other sources (map_sources), and
feed-forward blocks with a factorized second projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..configs import Compact
from ..errors import VitfrostError
from ..methods.low_rank.factorize import factorize
from ..methods.low_rank.moments import InputMoments
from ..methods.low_rank.projection import CompactProjection, Layout
from ..plans.compact import FeedForwardPlan
from ..plans.heads import LayerPlan
from ..plans.schema import Plan
from ..statistics.record import Statistics
from ..vit.attention import MapAttention
from ..vit.families import allowed_pairs, find_sites, install_map_attention
from ..vit.feed_forward import second_projection
from ..vit.sites import AttentionSite, LinearSite, ModelSites

Fitted = Mapping[str, Mapping[str, Any]]


def has_structure(plan: Plan) -> bool:
    """True where the plan changes the layers themselves: constant or hallucinated heads, or compact feed-forward blocks."""
    return any(layer.sources for layer in plan.layers) or any(block.rank is not None for block in plan.feed_forward)


def changed_sites(sites: ModelSites, plan: Plan) -> ModelSites:
    """The sites of a model after `install_structure`: fewer logits, other layers; maps and heads stay."""
    layers = {layer.site: layer for layer in plan.layers if layer.sources}
    ranks = {block.site: block.rank for block in plan.feed_forward if block.rank is not None}
    attention = tuple(_with_logits(site, layers[site.name], plan) if site.name in layers else site for site in sites.attention)
    logit_heads = {site.name: site.logit_heads for site in attention if site.name in layers}
    by_name = {site.name: site for site in attention}
    linears: list[LinearSite] = []
    for linear in sites.linears:
        parent = linear.name.rpartition(".")[0]
        if parent in ranks and linear.role == "fc2":
            linears += [replace(linear, name=f"{linear.name}.{part}") for part in ("down", "up")]
            continue
        count = logit_heads.get(parent)
        if count == 0 and linear.role in ("query", "key"):
            continue
        if count is not None and linear.role in ("qkv", "key_value"):
            site = by_name[parent]
            shares = (count, count, site.heads) if linear.role == "qkv" else (count, site.heads)
            linear = replace(linear, split=shares)
        linears.append(linear)
    return replace(sites, attention=attention, linears=tuple(linears))


def _with_logits(site: AttentionSite, layer: LayerPlan, plan: Plan) -> AttentionSite:
    macs = tuple((source.cost, source.macs(site, layer, plan.settings_of(source))) for source in layer.sources)
    apart = sum(len(layer.heads_of(source.name)) for source in layer.sources if not source.of_logits and not source.of_queries)
    windowed = sum(len(layer.heads_of(source.name)) for source in layer.sources if source.of_queries)
    return replace(site, logit_heads=len(layer.logit_heads), mixed_apart=apart, windowed=windowed, source_macs=macs)


def fit_sources(plan: Plan, statistics: Statistics | None) -> Fitted:
    """What the sources of maps take from the statistics, by site and source; nothing without statistics."""
    if statistics is None:
        return {}
    return {layer.site: {source.name: source.fit(layer, plan, statistics) for source in layer.sources} for layer in plan.layers}


def needs_statistics(plan: Plan) -> bool:
    """Whether a source of the plan's maps cannot do without the statistics that the plan was made from."""
    return any(source.needs_statistics(plan.settings_of(source)) for layer in plan.layers for source in layer.sources)


def install_sources(model: nn.Module, plan: Plan, fitted: Fitted | None = None) -> None:
    """Leave queries and keys to the plan's other heads, in place, and install what makes the maps of those without.

    `fitted`: as `fit_sources` makes it; without, maps are uniform or copies (to load a state, to count, or to be trained).
    Raises VitfrostError for a layer that cannot have such maps.
    """
    modules = install_map_attention(model)
    for layer in plan.layers:
        if layer.sources:
            settings = {source.name: plan.settings_of(source) for source in layer.sources}
            allowed = allowed_pairs(model, layer.site)
            install_layer(modules[layer.site], layer, settings, allowed, (fitted or {}).get(layer.site, {}))


def install_layer(
    module: MapAttention,
    layer: LayerPlan,
    settings: Mapping[str, Any],
    allowed: Bool[Tensor, "windows queries keys"] | None,
    fitted: Mapping[str, Any],
) -> None:
    """Give one attention layer the sources of its plan (see `install_sources`), in place; settings and what was fitted by source."""
    if any(source.of_logits for source in layer.sources) and (module.site.windows > 1 or module.has_relative_bias):
        raise VitfrostError(
            f"{layer.site} has windows, or a relative position bias in every head (Swin, BEiT), which hallucination does not support; "
            "leave its heads computed"
        )
    if any(source.of_queries for source in layer.sources) and module.has_relative_bias:
        raise VitfrostError(
            f"{layer.site} has a relative position bias in every head (Swin, BEiT, CoAtNet), so its heads cannot be windowed; leave them "
            "computed, or freeze them"
        )
    made = [source.make(module.site, layer, settings.get(source.name), allowed, fitted.get(source.name)) for source in layer.sources]
    module.keep_logits(layer.order, len(layer.logit_heads))
    for source, part in zip(layer.sources, made, strict=True):
        part.to(module.proj.weight).train(module.training)
        if source.of_logits:
            module.hallucinate(part)
        elif source.of_queries:
            module.look_near(part, len(layer.heads_of(source.name)))
        else:
            module.mix_apart(source.module, part, len(layer.heads_of(source.name)))


@contextmanager
def watch_inputs(model: nn.Module, blocks: Sequence[FeedForwardPlan]) -> Iterator[dict[str, InputMoments]]:
    """Second moments of what the second projections of the compact ones among the blocks read, of all that passes meanwhile."""
    seen: dict[str, InputMoments] = {}
    handles = []
    for block in blocks:
        if block.rank is None:
            continue
        layer = model.get_submodule(second_projection(model, block.site))
        moments = seen[block.site] = InputMoments(block.hidden, channels_first=isinstance(layer, nn.Conv2d))
        handles.append(layer.register_forward_pre_hook(lambda _, inputs, moments=moments: moments.add(inputs[0])))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def install_compaction(
    model: nn.Module,
    plan: Plan,
    *,
    training: bool = False,
    inputs: Mapping[str, InputMoments] | None = None,
    fill: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Factorize the second projections of the plan's compact blocks, in place.

    `inputs` (by feed-forward site, from `watch_inputs`): factors that change the outputs least over these inputs; without them plain
    SVD, or untrained factors where the plan says `random`. `fill=False` leaves the factors untrained in any case (to load a state).
    Returns the relative error of every block's output (of its weight, without `inputs`).
    """
    errors: dict[str, float] = {}
    for number, block in enumerate(plan.feed_forward):
        if block.rank is None:
            continue
        assert plan.compact is not None
        name = second_projection(model, block.site)
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        moments = None if inputs is None or plan.compact.init == "weights" else inputs[block.site]
        made, error = compact_projection(layer, block, plan.compact, moments, training=training, fill=fill, seed=seed + number)
        model.set_submodule(name, made.train(model.training).to(layer.weight.device))
        if error is not None:
            errors[block.site] = error
    return errors


def compact_projection(
    layer: nn.Linear | nn.Conv2d,
    block: FeedForwardPlan,
    settings: Compact,
    moments: InputMoments | None = None,
    *,
    training: bool = False,
    fill: bool = True,
    seed: int = 0,
) -> tuple[CompactProjection, float | None]:
    """What replaces a block's second projection, and the relative error of its output: factors that fit the inputs' `moments`, or the
    weight itself without them; untrained (and no error) where the settings say `random`, or with `fill` unset."""
    assert block.rank is not None
    layout: Layout = "channels-first" if isinstance(layer, nn.Conv2d) else "tokens"
    if not fill or settings.init == "random":
        made = CompactProjection(
            block.hidden, block.width, block.rank, settings, layout=layout, bias=layer.bias is not None, merged=not training
        )
        return made.to(layer.weight.dtype), None
    second, mean = (None, None) if moments is None else (moments.second_moment, moments.mean)
    factors = factorize(layer.weight.detach().flatten(1), layer.bias, block.rank, second, mean)
    made = CompactProjection.from_factors(factors, settings, like=layer, merged=not training, second_moment=second, mean=mean, seed=seed)
    return made, factors.relative_error


@torch.random.fork_rng(devices=[])
def install_structure(model: nn.Module, plan: Plan, *, training: bool = False) -> ModelSites:
    """Give a model, as timm builds it, the plan's layers, in place, untrained: to load a state, to count, or to train from scratch.

    Attention keeps the model's weights of the heads that stay; maps start as copies, constant ones as uniform. Returns the sites of
    the changed model.
    """
    sites = find_sites(model)
    install_sources(model, plan)
    install_compaction(model, plan, training=training, fill=False)
    return changed_sites(sites, plan)


def merge_structure(model: nn.Module) -> nn.Module:
    """Training form to inference form, in place; nothing happens where nothing is to merge."""
    for module in model.modules():
        if isinstance(module, CompactProjection):
            module.merge()
    return model


@torch.no_grad()
def start_from(
    model: nn.Module,
    plan: Plan,
    pixels: Float[Tensor, "images 3 height width"] | None,
    fitted: Fitted | None = None,
    *,
    training: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Give a trained model the plan's structure in closed form, in place: sources of maps as they were `fitted` (`fit_sources`), the
    factors by an SVD that is aware of the activations which `pixels` cause in the model with these maps.

    Returns the relative error of every compact block's output. Raises VitfrostError where images are needed and not given.
    """
    compact = any(block.rank is not None for block in plan.feed_forward)
    aware = compact and plan.compact is not None and plan.compact.init == "activations"
    if aware and pixels is None:
        raise VitfrostError('factors that fit the activations need images; give --images DIR, or plan with Compact(init="weights")')
    install_sources(model, plan, fitted)
    inputs = None
    if aware:
        assert pixels is not None
        was_training = model.training
        with watch_inputs(model.eval(), plan.feed_forward) as inputs:
            for batch in pixels.split(batch_size):
                model(batch)
        model.train(was_training)
    return install_compaction(model, plan, training=training, inputs=inputs, seed=seed)
