"""Whether a plan is for a model: its name, resolution, sites and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..configs import Quantize
from ..errors import VitfrostError
from ..identity import Identity
from ..vit.sites import ModelSites
from .schema import Plan


def check_fits(
    plan: Plan,
    identity: Identity,
    signature: Sequence[Mapping[str, Any]],
    feed_forward: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Raise VitfrostError saying what differs unless the plan is for this model.

    `identity` and `signature` are Model.identity and ModelSites.signature(), `feed_forward` those of its feed-forward sites.
    The weight tag may differ: it only says where the weights came from, their hash says which they are.
    """
    ours, theirs = plan.model, identity
    for what, planned, given in (
        ("model", ours.name, theirs.name),
        ("resolution", "x".join(map(str, ours.image_size)), "x".join(map(str, theirs.image_size))),
        ("number of classes", ours.classes, theirs.classes),
    ):
        if planned != given:
            raise VitfrostError(f"the plan is for another {what}: {planned} in the plan, {given} given")
    check_sites(plan, signature, feed_forward)
    if ours.state_hash != theirs.state_hash:
        raise VitfrostError(
            f"the plan is for other weights of {ours.name}: {ours.weight_tag} ({ours.state_hash[:12]}) in the plan, "
            f"{theirs.weight_tag} ({theirs.state_hash[:12]}) given"
        )


def check_bits(quantize: Quantize, name: str, *known: ModelSites) -> None:
    """Raise VitfrostError where single layers or heads have bits that a model with these sites does not have."""
    linears = [linear.name for sites in known for linear in sites.linears]
    quantize.parts.check(name, linears, {site.name: site.heads for sites in known for site in sites.attention})


def check_sites(plan: Plan, signature: Sequence[Mapping[str, Any]], feed_forward: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Raise VitfrostError saying what differs unless the plan is for a model with these attention and feed-forward sites."""
    name = plan.model.name
    sites = [(site["name"], tuple(site["maps"]), site.get("prefix_tokens", 0)) for site in signature]
    planned_sites = [(layer.site, layer.maps, layer.prefix_tokens) for layer in plan.layers]
    if len(sites) != len(planned_sites):
        raise VitfrostError(f"the plan has {len(planned_sites)} layers, but {name} has {len(sites)} attention sites")
    for number, (planned_site, site) in enumerate(zip(planned_sites, sites, strict=True)):
        if planned_site != site:
            shown = [f"{name} with maps {list(maps)} and {prefix} prefix tokens" for name, maps, prefix in (planned_site, site)]
            raise VitfrostError(f"layers[{number}] of the plan is {shown[0]}, but the model's site is {shown[1]}")
    if feed_forward is None:
        return
    blocks = {site["name"]: (site["width"], site["hidden"]) for site in feed_forward}
    for number, block in enumerate(plan.feed_forward):
        if block.site not in blocks:
            raise VitfrostError(f"feed_forward[{number}] of the plan is {block.site}, which {name} does not have")
        if blocks[block.site] != (block.width, block.hidden):
            raise VitfrostError(
                f"feed_forward[{number}] of the plan is {block.site} of width {block.width} and {block.hidden} hidden channels, "
                f"but the model's has {blocks[block.site][0]} and {blocks[block.site][1]}"
            )
