"""A plan's structure: attention layers with fewer queries and keys, whose other heads' maps are constants or made of the others', and
feed-forward blocks with a factorized second projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..configs import Compact, Hallucinate
from ..errors import VitfrostError
from ..methods.constant_heads.constants import Shape
from ..methods.constant_heads.cost import constant_macs
from ..methods.constant_heads.module import ConstantHeads
from ..methods.hallucination.cost import generation_macs
from ..methods.hallucination.fit import HeadChoice, fit_mix, fit_pairs
from ..methods.hallucination.maps import HeadHallucination
from ..methods.low_rank.factorize import factorize
from ..methods.low_rank.moments import InputMoments
from ..methods.low_rank.projection import CompactProjection, Layout
from ..plans.heads import LayerPlan, sources
from ..plans.schema import Plan
from ..plans.structure import FeedForwardPlan
from ..vit.attention import MapAttention
from ..vit.families import allowed_pairs, find_sites, install_map_attention
from ..vit.sites import AttentionSite, LinearSite, ModelSites


def has_structure(plan: Plan) -> bool:
    """True where the plan changes the layers themselves: constant or hallucinated heads, or compact feed-forward blocks."""
    return any(layer.hallucinated or layer.constant for layer in plan.layers) or any(block.rank is not None for block in plan.feed_forward)


def changed_sites(sites: ModelSites, plan: Plan) -> ModelSites:
    """The sites of a model after `install_structure`: fewer logits, other layers; maps and heads stay."""
    layers = {layer.site: layer for layer in plan.layers if layer.hallucinated or layer.constant}
    ranks = {block.site: block.rank for block in plan.feed_forward if block.rank is not None}
    attention = tuple(_with_logits(site, layers[site.name], plan) if site.name in layers else site for site in sites.attention)
    logit_heads = {site.name: site.logit_heads for site in attention if site.name in layers}
    by_name = {site.name: site for site in attention}
    linears: list[LinearSite] = []
    for linear in sites.linears:
        parent, _, last = linear.name.rpartition(".")
        if parent in ranks and last == "fc2":
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
    count, made, constant = len(layer.logit_heads), len(layer.hallucinated), len(layer.constant)
    macs = 0
    if made:
        assert plan.hallucinate is not None
        macs = generation_macs(site.queries, site.keys, count, made, plan.hallucinate, site.prefix_tokens)
    applied = constant_macs(shape_of(site), site.maps_shape, site.head_dim, kinds_of(layer)) if constant else 0
    return replace(site, logit_heads=count, generation_macs=macs, constant_heads=constant, constant_macs=applied)


def kinds_of(layer: LayerPlan) -> list[tuple[str, int | None]]:
    """Kind and window of every constant head of a layer, in their order."""
    heads = [layer.heads[number] for number in layer.constant]
    return [(head.constant, head.window) for head in heads if head.constant is not None]


def shape_of(site: AttentionSite) -> Shape | None:
    """The patch grid of a site's structured constants; None where queries and keys do not lie on one grid."""
    same = site.queries == site.keys and site.grid_of_keys == site.grid
    return Shape(site.grid, site.prefix_tokens) if same and site.queries == site.prefix_tokens + prod(site.grid) else None


def install_constants(model: nn.Module, plan: Plan, constants: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Leave queries and keys to the plan's other heads, in place, and give its frozen heads constant maps.

    `constants`: by site, those of its frozen heads in their order, as `plans.freeze_heads.constants_of` fits them; without them maps
    are uniform (to load a state, to count, or to be trained). Raises VitfrostError for a kind that a layer's maps cannot have.
    """
    modules = install_map_attention(model)
    for layer in plan.layers:
        if not layer.constant:
            continue
        freeze_heads(modules[layer.site], layer, allowed_pairs(model, layer.site), None if constants is None else constants[layer.site])


def freeze_heads(
    module: MapAttention,
    layer: LayerPlan,
    allowed: Bool[Tensor, "windows queries keys"] | None,
    constants: Sequence[Any] | None = None,
) -> None:
    """Give the layer's frozen heads constant maps (see `install_constants`), in place; the other heads keep queries and keys."""
    site = module.site
    try:
        made = ConstantHeads(kinds_of(layer), shape_of(site), (site.windows, site.queries, site.keys), site.head_dim, allowed)
        if constants is not None:
            for head, constant in zip(made.constants(), constants, strict=True):
                head.set(constant)
    except ValueError as error:
        raise VitfrostError(f"{layer.site}: {error}; write constant: dense for its heads, or plan again") from error
    made.to(module.proj.weight).train(module.training)
    if not layer.hallucinated:
        module.keep_logits(layer.order, len(layer.logit_heads))
    module.freeze_heads(made)


def install_hallucination(model: nn.Module, plan: Plan, similarity: Mapping[str, Float[Tensor, "heads heads"]] | None = None) -> None:
    """Leave queries and keys to the plan's other heads, in place, and make the hallucinated maps of theirs.

    `similarity`: second moments of the heads' row-centered logits by site (`hallucination.fit.head_moments`); with them the mix
    starts in closed form where the plan says so, without them as copies.
    Raises VitfrostError for a layer that cannot be hallucinated.
    """
    modules = install_map_attention(model)
    for layer in plan.layers:
        if not layer.hallucinated:
            continue
        module = modules[layer.site]
        if module.site.windows > 1 or module.has_relative_bias:
            raise VitfrostError(
                f"{layer.site} has windows with a relative position bias (Swin), which hallucination does not support; "
                "leave its heads computed"
            )
        assert plan.hallucinate is not None
        moments = similarity[layer.site] if similarity is not None and plan.hallucinate.fits_mix else None
        module.hallucinate(_hallucination(module, layer, plan.hallucinate, moments))
        module.keep_logits(layer.order, len(layer.logit_heads))


def mixed_moments(moments: Float[Tensor, "heads heads"], layer: LayerPlan) -> tuple[Float[Tensor, "mixed mixed"], HeadChoice]:
    """The second moments of a layer's heads that have logits or are made of them, and which those are among them; heads with
    constant maps take no part."""
    mixed = [head for head in range(len(layer.heads)) if head not in layer.constant]
    kept = tuple(mixed.index(head) for head in layer.logit_heads)
    places = tuple(layer.logit_heads.index(source) for source in sources(layer))
    return moments[mixed][:, mixed], HeadChoice(kept, places)


def _hallucination(module: MapAttention, layer: LayerPlan, settings: Hallucinate, moments: Tensor | None) -> HeadHallucination:
    site = module.site
    if settings.intra_map == "key-grid" and site.grid_of_keys is None:
        raise VitfrostError(
            f"{site.name} has keys that lie on no patch grid (each is a mean of consecutive tokens), which intra_map key-grid needs; "
            "plan with --intra-map 3x3 or none, or leave this layer's heads computed"
        )
    kept = layer.logit_heads
    places = tuple(kept.index(source) for source in sources(layer))
    made = HeadHallucination(len(kept), places, settings, prefix_tokens=site.prefix_tokens, key_grid=site.grid_of_keys)
    if moments is not None:
        moments, choice = mixed_moments(moments, layer)
        made.mix.set_mix(fit_pairs(moments, choice) if settings.inter_map == "pair" else fit_mix(moments, choice, settings.ridge))
    return made.to(module.proj.weight)


@contextmanager
def watch_inputs(model: nn.Module, blocks: Sequence[FeedForwardPlan]) -> Iterator[dict[str, InputMoments]]:
    """Second moments of what the second projections of the compact ones among the blocks read, of all that passes meanwhile."""
    seen: dict[str, InputMoments] = {}
    handles = []
    for block in blocks:
        if block.rank is None:
            continue
        layer = model.get_submodule(f"{block.site}.fc2")
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
        parent = model.get_submodule(block.site)
        layer = parent.get_submodule("fc2")
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        moments = None if inputs is None or plan.compact.init == "weights" else inputs[block.site]
        made, error = compact_projection(layer, block, plan.compact, moments, training=training, fill=fill, seed=seed + number)
        parent.fc2 = made.train(model.training).to(layer.weight.device)
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
    install_hallucination(model, plan)
    install_constants(model, plan)
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
    similarity: Mapping[str, Float[Tensor, "heads heads"]] | None,
    *,
    constants: Mapping[str, Sequence[Any]] | None = None,
    training: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Give a trained model the plan's structure in closed form, in place: the mix by ridge regression on logits, `constants` of frozen
    heads as they were fitted to mean maps, the factors by an SVD that is aware of the activations which `pixels` cause in the model
    with its hallucinated and constant maps.

    Returns the relative error of every compact block's output. Raises VitfrostError where images are needed and not given.
    """
    compact = any(block.rank is not None for block in plan.feed_forward)
    aware = compact and plan.compact is not None and plan.compact.init == "activations"
    if aware and pixels is None:
        raise VitfrostError("factors that fit the activations need images; give --images DIR, or plan with --compact-init weights")
    install_hallucination(model, plan, similarity)
    install_constants(model, plan, constants)
    inputs = None
    if aware:
        assert pixels is not None
        was_training = model.training
        with watch_inputs(model.eval(), plan.feed_forward) as inputs:
            for batch in pixels.split(batch_size):
                model(batch)
        model.train(was_training)
    return install_compaction(model, plan, training=training, inputs=inputs, seed=seed)
