"""The verb `inspect`: what vitfrost sees of a model, and what each part of it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VitfrostError
from .cost import MAC_PARTS, PARAMETER_PARTS, macs_by_part, parameters_by_part, softmax_elements

if TYPE_CHECKING:
    from rich.console import Group
    from torch import nn

    from ..model import Model, ModelLike
    from ..plans.schema import Plan
    from ..vit.sites import ModelSites


class Inspection(dict[str, Any]):
    """What `inspect` found, as plain data for JSON; shown in one line."""

    def __repr__(self) -> str:
        heads = sum(site["heads"] for site in self["attention"])
        size = f"{self['layers']} layers, {heads} heads, {_size(self['image_size'])} px"
        return f"Inspection({self['name']}: {self['family']}, {size}, {_cost(self)}{self._planned()})"

    def _planned(self) -> str:
        return f"; planned: {_cost(self['planned'])}, {self['planned']['bits']}" if "planned" in self else ""

    __str__ = __repr__


def _cost(counted: dict[str, Any]) -> str:
    return f"{counted['parameters_total'] / 1e6:.2f} M parameters, {counted['macs_total'] / 1e6:.1f} M multiply-accumulates"


def skeleton(loaded: Model) -> tuple[nn.Module, ModelSites]:
    """The model as timm builds it, or with an artifact's structure, before anything was quantized, untrained; and its sites."""
    from ..artifact import Artifact
    from ..passes.structure import install_structure
    from ..vit.families import find_sites

    model = loaded.blank()
    return model, install_structure(model, loaded.plan) if isinstance(loaded, Artifact) else find_sites(model)


def inspect(model: ModelLike | None = None, *, plan: Plan | str | Path | None = None) -> Inspection:
    """Describe a model: sites, heads, tokens, parameters and multiply-accumulates by part; with a plan, also what it makes of them.

    `model`: as of every verb, but a timm name downloads nothing; the plan's own where it is not given.
    Returns plain data for JSON: name, family, image_size, tokens, attention
    (one entry per site), feed_forward (likewise), parameters and macs (by part), parameters_total, macs_total,
    softmax_elements, supported (always True), and with a plan `planned`: hallucinated_heads, constant_heads, compact_blocks, frozen_entries
    of so many entries (attention weights), bits, and parameters and macs as above.
    Raises UnsupportedModel in one line that names what is not supported, VitfrostError for bad names, weights and plans, and for a plan
    that changes layers beside an artifact whose layers are changed already.
    """
    from ..model import Model, as_model, names_folder
    from ..plans.schema import Plan

    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(plan)
    if model is None:
        if plan is None:
            raise VitfrostError("nothing to inspect; give a model, an artifact or a plan")
        model = Model.open(plan.model.name, weights="random", image_size=plan.model.image_size, classes=plan.model.classes)
    elif isinstance(model, str) and not names_folder(model):
        model = Model.open(model, weights="random")
    loaded = as_model(model)
    if plan is not None:
        _refuse_twice(loaded, plan)
    plain, sites = skeleton(loaded)
    parameters, macs = parameters_by_part(plain, sites), macs_by_part(plain, sites)
    description: dict[str, Any] = {
        "name": loaded.name,
        "supported": True,
        "family": sites.family,
        "image_size": list(sites.image_size),
        "layers": len(sites.attention),
        "tokens": sites.attention[0].queries * sites.attention[0].windows,
        "attention": [
            {
                "name": site.name,
                "heads": site.heads,
                "head_width": site.head_dim,
                "width": site.width,
                "maps": list(site.maps_shape),
                "windows": site.windows,
                "shift": list(site.shift),
                "prefix_tokens": site.prefix_tokens,
                "grid": list(site.grid),
                "key_grid": list(site.key_grid) if site.key_grid else None,
            }
            for site in sites.attention
        ],
        "feed_forward": [
            {"name": site.name, "block": site.block, "width": site.width, "hidden": site.hidden, "tokens": site.tokens}
            for site in sites.feed_forward
        ],
        "parameters": parameters,
        "parameters_total": sum(parameters.values()),
        "macs": macs,
        "macs_total": sum(macs.values()),
        "softmax_elements": softmax_elements(sites),
    }
    return Inspection(description if plan is None else description | {"planned": _planned(plain, sites, plan)})


def _refuse_twice(loaded: Model, plan: Plan) -> None:
    from ..artifact import Artifact
    from ..passes.structure import has_structure

    if isinstance(loaded, Artifact) and has_structure(loaded.plan) and has_structure(plan):
        raise VitfrostError(
            f"the plan is for the original {plan.model.name}, and the artifact's layers are changed already; inspect the plan without the "
            "artifact, or the artifact without the plan"
        )


def _planned(model: nn.Module, sites: ModelSites, plan: Plan) -> dict[str, Any]:
    """What the plan makes of the model's parameters and multiply-accumulates; the model gets the plan's structure."""
    from ..passes.structure import install_structure
    from ..plans.choose import summary
    from ..plans.fits import check_sites

    check_sites(plan, sites.signature(), [site.signature() for site in sites.feed_forward])
    changed = install_structure(model, plan)
    parameters, macs, frozen = parameters_by_part(model, changed), macs_by_part(model, changed), summary(plan)
    return {
        "hallucinated_heads": sum(len(layer.hallucinated) for layer in plan.layers),
        "constant_heads": sum(len(layer.constant) for layer in plan.layers),
        "compact_blocks": sum(block.rank is not None for block in plan.feed_forward),
        "frozen_entries": frozen["frozen_entries"],
        "entries": frozen["entries"],
        "bits": plan.quantize.parts.label,
        "parameters": parameters,
        "parameters_total": sum(parameters.values()),
        "macs": macs,
        "macs_total": sum(macs.values()),
    }


def format_inspection(description: dict[str, Any]) -> Group:
    """Compact tables for a terminal: attention and feed-forward sites (equal neighbors together), parameters and MACs by part."""
    from rich.console import Group

    from ..terminal import tables

    attention, blocks = _runs(description["attention"]), _runs(description["feed_forward"])
    none = [""] * len(attention)
    sites = tables([
        ("from site", [site["name"] for site, _ in attention]),
        ("layers", [str(layers) for _, layers in attention]),
        *((title, [str(site[key]) for site, _ in attention]) for title, key in (("heads", "heads"), ("head\nwidth", "head_width"))),
        ("tokens", [str(site["maps"][2]) for site, _ in attention]),
        ("keys", [str(site["maps"][3]) for site, _ in attention]),
        ("windows", [str(site["windows"]) for site, _ in attention] if any(site["windows"] > 1 for site, _ in attention) else none),
        ("prefix", [str(site["prefix_tokens"]) for site, _ in attention]),
    ], title=f"{description['name']}: {description['family']}, {_size(description['image_size'])} px")  # fmt: skip
    feed_forward = tables([
        ("from feed-forward", [block["name"] for block, _ in blocks]),
        ("layers", [str(layers) for _, layers in blocks]),
        *((key, [str(block[key]) for block, _ in blocks]) for key in ("width", "hidden", "tokens")),
        ("after", ["convolution" if block["block"] == "convolution" else "attention" for block, _ in blocks]),
    ], left=("after",))  # fmt: skip
    elements = f"softmax elements per image: {description['softmax_elements']:,}"
    planned = description.get("planned")
    if planned is None:
        return Group(sites, feed_forward, _parts(description), elements)
    heads, compact, entries = planned["hallucinated_heads"], planned["compact_blocks"], planned["frozen_entries"]
    share = f" ({100 * entries / planned['entries']:.2f} %)" if entries else ""
    said = (
        f"{planned['constant_heads']} frozen heads, {heads} hallucinated heads, {compact} compact feed-forward blocks, "
        f"{entries:,} frozen attention weights{share}; bits: {planned['bits']}"
    )
    return Group(sites, feed_forward, _parts(description, planned), said, elements)


def _parts(description: dict[str, Any], planned: dict[str, Any] | None = None) -> Group:
    """Parameters and multiply-accumulates by part, and what a plan leaves of them."""
    from ..terminal import tables

    named = dict.fromkeys(PARAMETER_PARTS[:3] + MAC_PARTS)
    after = planned or {"parameters": {}, "macs": {}}
    kept = [part for part in named if any(about[of].get(part, 0) for about in (description, after) for of in ("parameters", "macs"))]

    def counts(about: dict[str, Any], of: str) -> list[int]:
        return [*(about[of].get(part, 0) for part in kept), about.get(f"{of}_total", 0)]

    def saved(of: str) -> list[str]:
        pairs = zip(counts(description, of), counts(after, of), strict=True)
        return [f"{100 * (1 - new / old):.1f}" if old and new != old else "" for old, new in pairs]

    shares = [f"{100 * count / description['macs_total']:.1f}" if count else "" for count in counts(description, "macs")]
    columns = [("part", [*(part.replace("_", " ") for part in kept), "total"])]
    for title, of in (("parameters", "parameters"), ("MACs", "macs")):
        columns.append((title, [_count(count) for count in counts(description, of)]))
        columns += [("MACs %", shares)] if of == "macs" else []
        if planned is not None:
            columns += [("planned", [_count(count) for count in counts(after, of)]), ("saved %", saved(of))]
    return tables(columns, total=True)


def _size(image_size: list[int]) -> str:
    return "x".join(str(side) for side in image_size)


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _runs(sites: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The first of neighboring sites that differ in name and shift only, and how many they are."""
    runs: list[tuple[dict[str, Any], int]] = []
    for site in sites:
        if runs and all(runs[-1][0][key] == site[key] for key in site if key not in ("name", "shift")):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((site, 1))
    return runs
