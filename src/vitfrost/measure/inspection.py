"""The verb `inspect`: what vitfrost sees of a model, and what each part of it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost import MAC_PARTS, PARAMETER_PARTS, macs_by_part, parameters_by_part, softmax_elements

if TYPE_CHECKING:
    from rich.console import Group
    from torch import nn

    from ..vit.load import LoadedModel
    from ..vit.sites import ModelSites


def skeleton(loaded: LoadedModel) -> tuple[nn.Module, ModelSites]:
    """The model as timm builds it, before anything was compressed, with untrained weights; and its sites."""
    from ..vit.families import find_sites
    from ..vit.load import create_model

    model = create_model(loaded.name, loaded.image_size, **loaded.options)
    return model, find_sites(model)


def inspect(
    model: str | Path | LoadedModel, *, weights: str | Path | None = None, image_size: int | tuple[int, int] | None = None
) -> dict[str, Any]:
    """Describe a model: sites, heads, tokens, parameters and multiply-accumulates by part.

    `model`: a timm name (nothing is downloaded), a LoadedModel, or an artefact's folder. `weights`: a file that is loaded
    to see whether it fits. Returns plain data for JSON: name, family, image_size, tokens, attention (one entry per
    site), feed_forward (likewise), parameters and macs (by part), parameters_total, macs_total, softmax_elements, supported
    (always True).
    Raises UnsupportedModel in one line that names what is not supported, VitfrostError for bad names and weights.
    """
    from ..models import names_artefact, open_model
    from ..vit.families import find_sites
    from ..vit.load import create_model

    if isinstance(model, str) and weights is None and not names_artefact(model):
        name, plain = model, create_model(model, image_size)
        sites = find_sites(plain)
    else:
        loaded = open_model(model, weights, image_size)
        name, (plain, sites) = loaded.name, skeleton(loaded)
    parameters, macs = parameters_by_part(plain, sites), macs_by_part(plain, sites)
    return {
        "name": name,
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


def format_inspection(description: dict[str, Any]) -> Group:
    """Compact tables for a terminal: attention and feed-forward sites (equal neighbours together), parameters and MACs by part."""
    from rich.console import Group
    from rich.table import Table

    sites = Table(title=f"{description['name']}: {description['family']}, {_size(description['image_size'])} px", title_justify="left")
    sites.add_column("from site", no_wrap=True)
    for column in ("layers", "heads", "head width", "tokens", "keys", "windows", "prefix"):
        sites.add_column(column, justify="right")
    for site, layers in _runs(description["attention"]):
        numbers = (layers, site["heads"], site["head_width"], *site["maps"][2:], site["windows"], site["prefix_tokens"])
        sites.add_row(site["name"], *map(str, numbers))
    blocks = Table()
    for column in ("from feed-forward", "layers", "width", "hidden", "tokens", "after"):
        blocks.add_column(column, justify="left" if column in ("from feed-forward", "after") else "right", no_wrap=True)
    for block, layers in _runs(description["feed_forward"]):
        after = "convolution" if block["block"] == "convolution" else "attention"
        blocks.add_row(block["name"], *map(str, (layers, block["width"], block["hidden"], block["tokens"])), after)
    parts = Table()
    for column in ("part", "parameters", "MACs", "MACs %"):
        parts.add_column(column, justify="left" if column == "part" else "right")
    total = description["macs_total"]
    for part in dict.fromkeys(PARAMETER_PARTS[:3] + MAC_PARTS):
        parameters, macs = description["parameters"].get(part), description["macs"].get(part)
        if parameters or macs:
            parts.add_row(part.replace("_", " "), _count(parameters), _count(macs), f"{100 * macs / total:.1f}" if macs else "")
    parts.add_section()
    parts.add_row("total", f"{description['parameters_total']:,}", f"{total:,}", "100.0")
    return Group(sites, blocks, parts, f"softmax elements per image: {description['softmax_elements']:,}")


def _size(image_size: list[int]) -> str:
    return "x".join(str(side) for side in image_size)


def _count(value: int | None) -> str:
    return f"{value:,}" if value else ""


def _runs(sites: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The first of neighbouring sites that differ in name and shift only, and how many they are."""
    runs: list[tuple[dict[str, Any], int]] = []
    for site in sites:
        if runs and all(runs[-1][0][key] == site[key] for key in site if key not in ("name", "shift")):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((site, 1))
    return runs
