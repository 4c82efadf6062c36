"""The verb `resize`: a compressed model at another image size, its constants carried over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..artifact import Artifact, pack_state, restore_state
from ..errors import VitfrostError
from ..files import refuse_existing
from ..identity import Identity
from ..map_sources.frozen import dilated, shape_of_site
from ..methods.constant_heads.constants import Shape, carried, stretched_window
from ..methods.constant_heads.kinds import KINDS
from ..methods.constant_heads.module import ConstantHeads
from ..plans.heads import HeadPlan, LayerPlan
from ..plans.schema import Plan
from ..torch_state import usual_torch
from ..vit.attention import MapAttention
from ..vit.families import find_sites
from ..vit.load import create_model, hash_state, refuse_cut_pixels
from ..vit.resize import fit_state, windows_of
from ..vit.sites import AttentionSite
from ..vit.skeleton import Skeleton


@usual_torch()
def resize(
    artifact: str | Path | Artifact, image_size: int | tuple[int, int], *, out: str | Path | None = None, overwrite: bool = False
) -> Artifact:
    """The same model for another image size: position embeddings are interpolated, kernels of constants stretched as the patch grid is (on
    a grid 1.5 times as large and more they keep their few numbers, whose taps then stand apart), dense maps interpolated over queries and
    keys.

    Nothing is trained, so accuracy falls as it does for the original when its input size is changed. Codes of weights and ranges of
    activations stay as they are. Frozen entries belong to their size and are refused, as are constants of windows. Raises VitfrostError
    naming what cannot be carried over.
    """
    if out is not None:
        refuse_existing(Path(out), overwrite)
    given = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)
    if given.plan.freeze is not None:
        raise VitfrostError(
            "the artifact has frozen entries, which belong to its image size; freeze them in a model opened at the new size"
        )
    if not given.registered:
        raise VitfrostError(f"only timm's models are built for another image size, and timm cannot make this {given.name}")
    model = create_model(given.name, image_size, **given.options)
    refuse_cut_pixels(model, find_sites(model).image_size)
    sites = {site.name: site for site in find_sites(model).attention}
    blank = given.blank()
    before = {site.name: site for site in find_sites(blank).attention}
    size = find_sites(model).image_size
    layers = tuple(_layer(layer, before[layer.site], sites[layer.site]) for layer in given.plan.layers)
    state = {name: torch.from_numpy(value) for name, value in pack_state(given.module).items()}
    for name, module in given.module.named_modules():
        if isinstance(module, MapAttention) and isinstance(module.constants, ConstantHeads):
            carried_over = module.constants.at(_grids(before[name], sites[name])[1].grid)
            state |= {f"{name}.constants.{key}": value for key, value in carried_over.state_dict().items()}
    identity = given.plan.model.model_copy(update={"image_size": size})
    unhashed = given.plan.model_copy(update={"layers": layers, "model": identity})
    state = fit_state(model, state, getattr(getattr(blank, "patch_embed", None), "grid_size", None), windows_of(blank))
    skeleton = Skeleton(model)
    restore_state(model, unhashed, {name: value.numpy() for name, value in state.items()})
    digest = hash_state(model)
    tag = f"{given.weight_tag} at {_shown(given.image_size)} px"
    plan = _named(unhashed, {"weight_tag": tag, "state_hash": digest})
    original = replace(
        given, image_size=size, weight_tag=tag, state_hash=digest, preprocessing=given.preprocessing.at(size), skeleton=skeleton
    )
    made = Artifact.made_from(
        original, model, plan=plan, quantization=given.quantization, statistics=given.statistics, structure=given.structure,
        repair=given.repair, passes=given.passes, training=given.training, seeds=given.seeds, recipe=given.recipe,
    )  # fmt: skip
    if out is not None:
        made.save(out, overwrite)
    return made


def _shown(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _named(plan: Plan, changes: dict[str, Any]) -> Plan:
    """The plan for a model of another name, checked again."""
    identity = Identity.model_validate(plan.model.model_dump() | changes)
    return Plan.model_validate(plan.model_dump() | {"model": identity.model_dump()})


def _grids(before: AttentionSite, after: AttentionSite) -> tuple[Shape, Shape]:
    shapes = shape_of_site(before), shape_of_site(after)
    if shapes[0] is None or shapes[1] is None or before.windows > 1 or after.windows > 1:
        raise VitfrostError(f"{before.name} has windows or reduced keys, whose constants are not carried over to another image size")
    return shapes[0], shapes[1]


def _layer(layer: LayerPlan, before: AttentionSite, after: AttentionSite) -> LayerPlan:
    """The layer's plan with the maps of the new size, and windows grown as the grid has."""
    heads = []
    for head in layer.heads:
        if head.constant is not None:
            _grids(before, after)
        if head.constant is not None and KINDS[head.constant].needs_grid:
            shape, target = _carried(layer, before, after)
            window = None if head.window is None else stretched_window(head.window, shape, target)
            apart = target.dilation if target.dilation > 1 else None
            head = HeadPlan.model_validate(head.model_dump() | {"window": window, "dilation": apart})
        elif head.window is not None:
            head = HeadPlan.model_validate(head.model_dump() | {"window": stretched_window(head.window, *_grids(before, after))})
        heads.append(head)
    return LayerPlan.model_validate(layer.model_dump() | {"maps": after.maps_shape, "heads": [head.model_dump() for head in heads]})


def _carried(layer: LayerPlan, before: AttentionSite, after: AttentionSite) -> tuple[Shape, Shape]:
    """The layer's grid and the new one, with how far the taps of kernels are apart on each."""
    old, new = _grids(before, after)
    shape = dilated(old, layer)
    assert shape is not None
    return shape, carried(shape, new)
