"""One row of every head's maps laid over the patch grid, its mean and highest value by head, and how quantization changes it.

The row is that of the class token. Models without one (windowed attention) are shown by the mean over queries and windows in its place.
Shapes: H heads, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..statistics.record import Statistics, kl_maps
from ..vit.sites import AttentionSite
from .curves import Chart, by_head
from .figures import Picture, Scale, picture


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
    maps = [over_windows(kl_maps(ours.sites[site.name], theirs.sites[site.name]), ours.sites[site.name].allowed) for site in sites]
    rows = [token_row(one, site, class_token) for one, site in zip(maps, sites, strict=True)]
    scale = Scale.covering("KL divergence, bits (log)", rows, "cividis", log=True)
    return draw_rows(rows, [one[:, 0] for one in maps] if class_token else maps, class_token, "Divergence", "KL, bits", scale)
