"""Every head of a run as arrays that can be drawn and numbers that can be read: its maps, its CLS row, its frozen share, its constant.

Windowed attention has many maps per head; they are shown as the mean over the windows. Shapes: W windows, H heads, Q queries, K keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..map_sources.frozen import constants_of, shape_of
from ..map_sources.hallucinated import sources
from ..methods.constant_heads.kinds import KINDS
from ..plans.freeze_entries import frozen_maps
from ..plans.heads import LayerPlan
from ..plans.schema import Plan
from ..statistics.record import Statistics
from ..statistics.site import SiteStatistics, kl_maps
from ..vit.sites import AttentionSite
from .curves import Chart, by_head
from .figures import Picture, Scale, picture
from .parts import RunParts

MAP_PIXELS = 128
MEAN_MAP = "Mean map"


@dataclass(frozen=True)
class LayerMaps:
    """Maps [H, Q, K] of one layer, mean over the windows, NaN at pairs that see each other in no window."""

    site: AttentionSite
    entropy: Float[np.ndarray, "heads queries keys"]
    mean: Float[np.ndarray, "heads queries keys"]
    frozen: Float[np.ndarray, "heads queries keys"] | None
    constants: dict[int, Float[np.ndarray, "queries keys"]]


@dataclass(frozen=True)
class Head:
    """One head of the gallery. `frozen_share` is of its unmasked entries, all windows together; `like` a hallucinated head's model,
    `constant` the kind of a head that is frozen whole."""

    number: int
    mean_entropy: float
    frozen_share: float
    pictures: list[Picture]
    like: int | None = None
    constant: str | None = None


@dataclass(frozen=True)
class HeadGallery:
    """All layers with their heads, and the scales of the colors."""

    layers: list[tuple[AttentionSite, list[Head]]]
    scales: list[Scale]
    windowed: bool
    class_token: bool
    mean_entropy: list[list[float]]
    divergence: HeadRows | None


def shrink(values: Float[np.ndarray, "queries keys"], prefix_tokens: int, limit: int = MAP_PIXELS) -> Float[np.ndarray, "rows columns"]:
    """Block means, NaN left out, so that the patches take at most `limit` pixels per side; prefix tokens keep their own."""
    factor = max(1, math.ceil((max(values.shape) - prefix_tokens) / limit))
    if factor == 1:
        return values
    known = np.isfinite(values)
    totals, counts = np.where(known, values, 0.0), known.astype(np.int64)
    for axis, side in enumerate(values.shape):
        starts = _block_starts(side, prefix_tokens, factor)
        totals, counts = np.add.reduceat(totals, starts, axis=axis), np.add.reduceat(counts, starts, axis=axis)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def _block_starts(side: int, prefix_tokens: int, factor: int) -> Int[np.ndarray, " blocks"]:
    return np.concatenate([np.arange(prefix_tokens), np.arange(prefix_tokens, side, factor)])


def _layer_maps(site: AttentionSite, shown: SiteStatistics, plan: Plan | None, ranking: Statistics | None) -> LayerMaps:
    frozen, constants = None, {}
    if plan is not None and ranking is not None:
        known, layer = ranking.sites[site.name], next(layer for layer in plan.layers if layer.site == site.name)
        if plan.freeze is not None:
            mask, _ = frozen_maps(plan, known, layer)
            frozen = over_windows(mask.astype(np.float32), shown.allowed)
        size = plan.model.image_size
        for head, constant in zip(layer.constant, constants_of(layer, known, size), strict=True):
            kind = KINDS[layer.heads[head].constant or "dense"]
            whole = kind.whole(constant, shape_of(layer, size), known.allowed)
            whole = np.broadcast_to(whole, (site.windows, site.queries, site.keys))
            constants[head] = over_windows(whole[:, None], shown.allowed)[0]
    return LayerMaps(
        site,
        over_windows(shown.entropy, shown.allowed),
        over_windows(shown.mean, shown.allowed),
        frozen,
        constants,
    )


def frozen_shares(layers: tuple[LayerPlan, ...]) -> list[list[float]]:
    """Percent of every head's unmasked entries that are frozen."""
    return [[100 * head.entries / layer.entries_per_head for head in layer.heads] for layer in layers]


def _likes(layer: LayerPlan) -> dict[int, int]:
    """For every hallucinated head the number of the head that it starts like."""
    return dict(zip(layer.hallucinated, sources(layer), strict=True))


def build_gallery(parts: RunParts) -> HeadGallery | None:
    """Draw every head of the shown statistics; None where the run has no statistics of every weight."""
    shown, anatomy = parts.shown, parts.anatomy
    if shown is None or anatomy is None or shown.header.detail == "heads":
        return None
    other = parts.quantized if parts.statistics else None
    layers = [_layer_maps(site, shown.entries(site.name), parts.plan, parts.ranking) for site in anatomy.sites.attention]
    drawings = _drawings(layers, anatomy.class_token)
    planned = frozen_shares(parts.plan.layers) if parts.plan else [[0.0] * layer.site.heads for layer in layers]
    likes = [_likes(layer) for layer in parts.plan.layers] if parts.plan else [{} for _ in layers]
    means = [np.nanmean(layer.entropy, axis=(1, 2)).tolist() for layer in layers]
    return HeadGallery(
        layers=[
            (
                layer.site,
                [
                    Head(
                        head,
                        means[number][head],
                        planned[number][head],
                        _pictures(drawings, layer, number, head),
                        likes[number].get(head),
                        parts.plan.layers[number].heads[head].constant if parts.plan else None,
                    )
                    for head in range(layer.site.heads)
                ],
            )
            for number, layer in enumerate(layers)
        ],
        scales=[drawing.scale for drawing in drawings],
        windowed=any(layer.site.windows > 1 for layer in layers),
        class_token=anatomy.class_token,
        mean_entropy=means,
        divergence=divergence_rows(anatomy.sites.attention, anatomy.class_token, shown, other) if other else None,
    )


@dataclass(frozen=True)
class _Drawing:
    """One kind of picture: values [H, rows, columns] per layer, and their colors; over tokens or over the patch grid."""

    caption: str
    scale: Scale
    values: list[np.ndarray]
    over_patches: bool


def _drawings(layers: list[LayerMaps], class_token: bool) -> list[_Drawing]:
    """The kinds of pictures of a head, in the order in which they stand."""

    def drawing(caption: str, title: str, values: list[np.ndarray], colors: str, log: bool, over_patches: bool = False) -> _Drawing:
        return _Drawing(caption, Scale.covering(title, values, colors, log), values, over_patches)

    drawn = [
        drawing("Entropy map", "entropy, bits", [layer.entropy for layer in layers], "viridis", log=False),
        drawing(MEAN_MAP, "mean weight, log", [layer.mean for layer in layers], "magma", log=True),
    ]
    frozen = [layer.frozen for layer in layers if layer.frozen is not None]
    if frozen:
        drawn.append(_Drawing("Frozen entries", Scale("share of frozen entries", 0.0, 1.0, "frost"), frozen, False))
    if class_token:
        rows = [token_row(layer.entropy, layer.site, True) for layer in layers]
        drawn.append(drawing("CLS row, entropy", "entropy of the CLS row, bits", rows, "viridis", log=False, over_patches=True))
        rows = [token_row(layer.mean, layer.site, True) for layer in layers]
        drawn.append(drawing("CLS row, mean", "mean weight of the CLS row, log", rows, "magma", log=True, over_patches=True))
    return drawn


def _pictures(drawings: list[_Drawing], maps: LayerMaps, layer: int, head: int) -> list[Picture]:
    made = []
    for drawing in drawings:
        values = shrink(drawing.values[layer][head], 0 if drawing.over_patches else maps.site.prefix_tokens)
        where = f"layer {layer}, head {head}" + (", over the patch grid" if drawing.over_patches else "")
        made.append(Picture(drawing.caption, f"{drawing.caption} of {where}", picture(values, drawing.scale)))
        if drawing.caption == MEAN_MAP and head in maps.constants:  # beside the map that it stands for, in the same colors
            values = shrink(maps.constants[head], maps.site.prefix_tokens)
            made.append(Picture("Its constant", f"the constant in place of the maps of {where}", picture(values, drawing.scale)))
    return made


@dataclass(frozen=True)
class HeadRows:
    """The rows as pictures [layer][head] with the scale of their colors; mean and highest value [layer][head], and their chart."""

    class_token: bool
    pictures: list[list[Picture]]
    scale: Scale
    mean: list[list[float]]
    highest: list[list[float]]
    chart: Chart


def over_windows(
    maps: Float[np.ndarray, "windows heads queries keys"], allowed: Bool[np.ndarray, "windows queries keys"] | None
) -> Float[np.ndarray, "heads queries keys"]:
    """Mean over the windows in which a pair is allowed; NaN where it is allowed in none."""
    if allowed is None:
        return maps.mean(axis=0, dtype=np.float64)
    seen = allowed.sum(axis=0)
    total = (maps * allowed[:, None]).sum(axis=0, dtype=np.float64)
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def token_row(
    maps: Float[np.ndarray, "heads queries keys"], site: AttentionSite, class_token: bool
) -> Float[np.ndarray, "heads rows columns"]:
    """The class token's row over the patch grid, prefix tokens' keys left out; without class token the mean over the queries."""
    row = maps[:, 0] if class_token else np.nanmean(maps, axis=1)
    return row[:, site.prefix_tokens :].reshape(-1, *site.grid)


def draw_rows(rows: Sequence[np.ndarray], values: Sequence[np.ndarray], class_token: bool, what: str, unit: str, scale: Scale) -> HeadRows:
    """`rows[layer]` are drawn, [H, rows, columns]; mean and highest are of `values[layer]`, [H, ...]. `what` they are, in bits."""
    what = f"{what} of the CLS row" if class_token else f"Mean {what.lower()} over the queries"
    pictures = [
        [
            Picture(
                f"L{layer}H{head}: {np.nanmean(grid):.2g} bits",
                f"{what}, layer {layer}, head {head}: mean {np.nanmean(grid):.3g}, highest {np.nanmax(grid):.3g} bits",
                picture(grid, scale),
            )
            for head, grid in enumerate(heads)
        ]
        for layer, heads in enumerate(rows)
    ]  # fmt: skip
    flat = [one.reshape(len(one), -1) for one in values]
    mean, highest = ([function(one, axis=1).tolist() for one in flat] for function in (np.nanmean, np.nanmax))
    return HeadRows(class_token, pictures, scale, mean, highest, by_head({"mean": mean, "highest": highest}, unit, scale.log))


def divergence_rows(sites: Sequence[AttentionSite], class_token: bool, ours: Statistics, theirs: Statistics) -> HeadRows:
    """KL(original || quantized) of every attention weight over images (equation 14 and figure 4 of EAM).

    Mean and highest are those of the class token's row; without a class token, of all weights of a head.
    """
    maps = [over_windows(kl_maps(ours.entries(site.name), theirs.entries(site.name)), ours.entries(site.name).allowed) for site in sites]
    rows = [token_row(one, site, class_token) for one, site in zip(maps, sites, strict=True)]
    scale = Scale.covering("KL divergence, bits (log)", rows, "cividis", log=True)
    return draw_rows(rows, [one[:, 0] for one in maps] if class_token else maps, class_token, "Divergence", "KL, bits", scale)
