"""Figures 1 to 3 of EAM: attention on a picture, entropy of the class token's row, whole entropy maps; and which heads figure 4 shows.

Models without a class token (windowed attention) are shown by the mean over the queries and windows in the place of its row.
Shapes: W windows, H heads, Q queries, K keys.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..reporting.figures import Picture, Scale, picture
from ..reporting.heads import HeadRows, draw_rows, over_windows, shrink, token_row
from ..statistics.record import Statistics
from ..vit.sites import AttentionSite
from .grid_parts import GridParts
from .picture import MappedPicture

FIRST_HEADS = 6
FULL_MAP_PIXELS = 256
PAPER_HEAD = (1, 2)
"""The head whose map the paper shows, which counts from 1 (layer 2, head 3); beside layer 0, head 0 for the divergence."""


@dataclass(frozen=True)
class AttentionOnPicture:
    """Figure 1: the picture, its file, and the row of every head of the last layer over the patch grid."""

    file: str
    layer: int
    class_token: bool
    picture: Picture
    heads: list[Picture]
    scale: Scale


@dataclass(frozen=True)
class WholeMaps:
    """Figure 3: some heads' entropy maps."""

    maps: list[Picture]
    scale: Scale


def _number(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def tiled(
    windows: Float[np.ndarray, "windows heads rows columns"], image_size: tuple[int, int], shift: tuple[int, int]
) -> Float[np.ndarray, "heads height width"]:
    """Windows put side by side as they lie in the picture, the cyclic shift undone."""
    count, heads, rows, columns = windows.shape
    ratio = math.log(image_size[0] * columns / (image_size[1] * rows))
    high = min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(math.log(n * n / count) - ratio))
    whole = windows.reshape(high, count // high, heads, rows, columns).transpose(2, 0, 3, 1, 4)
    return np.roll(whole.reshape(heads, high * rows, count // high * columns), shift, axis=(1, 2))


def attention_on_picture(found: MappedPicture) -> AttentionOnPicture:
    """Figure 1."""
    header = found.header
    rows = found.maps[:, :, 0] if header.class_token else found.maps.mean(axis=2, dtype=np.float64)
    grids = rows[:, :, header.prefix_tokens :].reshape(*rows.shape[:2], *header.grid)
    heads = tiled(grids.astype(np.float64), (found.pixels.shape[0], found.pixels.shape[1]), header.shift)
    scale = Scale.covering("attention weight", [heads], "magma")
    what = "what the class token attends to" if header.class_token else "mean attention to each patch"
    return AttentionOnPicture(
        header.file, header.layer - 1, header.class_token,
        Picture("Input", "The picture as the model sees it", _photograph(found.pixels)),
        [
            Picture(f"Head {number}", f"{_number(header.layer - 1, number)}: {what}, highest weight {grid.max():.3f}", picture(grid, scale))
            for number, grid in enumerate(heads)
        ],
        scale,
    )  # fmt: skip


def _photograph(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _maps(statistics: Statistics, sites: Sequence[AttentionSite]) -> list[np.ndarray]:
    """Entropy maps [H, Q, K] of every layer, mean over the windows."""
    return [over_windows(statistics.entries(site.name).entropy, statistics.entries(site.name).allowed) for site in sites]


def mean_entropy(parts: GridParts, statistics: Statistics) -> list[list[float]]:
    """Mean entropy in bits of every head's whole map, by layer."""
    return [np.nanmean(one, axis=(1, 2)).tolist() for one in _maps(statistics, parts.anatomy.sites.attention)]


def entropy_rows(parts: GridParts, statistics: Statistics) -> HeadRows:
    """Figure 2."""
    sites, class_token = parts.anatomy.sites.attention, parts.anatomy.class_token
    rows = [token_row(one, site, class_token) for one, site in zip(_maps(statistics, sites), sites, strict=True)]
    scale = Scale.covering("entropy, bits", rows, "viridis")
    return draw_rows(rows, rows, class_token, "Entropy", "entropy, bits", scale)


def first_heads(rows: HeadRows) -> list[Picture]:
    """Those that figure 2 shows at once."""
    return [picture for heads in rows.pictures for picture in heads][:FIRST_HEADS]


def heads_of_the_paper(rows: HeadRows) -> list[Picture]:
    """Those of figure 4 (b) and (c), as far as the model has them."""
    chosen = [(heads, head) for layer, head in ((0, 0), PAPER_HEAD) for heads in rows.pictures[layer : layer + 1]]
    return [heads[head] for heads, head in chosen if head < len(heads)]


def whole_maps(parts: GridParts, statistics: Statistics) -> WholeMaps:
    """Figure 3: the heads of lowest and of highest mean entropy, and the paper's example where there is one."""
    sites = parts.anatomy.sites.attention
    maps = _maps(statistics, sites)
    means = {(layer, head): float(np.nanmean(one)) for layer, heads in enumerate(maps) for head, one in enumerate(heads)}
    chosen = {min(means, key=lambda key: means[key]): "lowest mean", max(means, key=lambda key: means[key]): "highest mean"}
    if PAPER_HEAD in means:
        chosen[PAPER_HEAD] = ", ".join(filter(None, (chosen.get(PAPER_HEAD), "the paper's L2H3")))
    scale = Scale.covering("entropy, bits", [maps[layer][head] for layer, head in chosen], "viridis")
    shown = []
    for (layer, head), why in chosen.items():
        values = shrink(maps[layer][head], sites[layer].prefix_tokens, FULL_MAP_PIXELS)
        caption = f"{_number(layer, head)}, {why}: {means[layer, head]:.2f} bits"
        shown.append(Picture(caption, f"Entropy map of layer {layer}, head {head}, {why}", picture(values, scale)))
    return WholeMaps(shown, scale)
