"""How alike the heads of a model are: second moments of their row-centered logits, within and across layers.

A softmax ignores a constant added to a row of logits, so a head's maps are its row-centered logits. Heads can be compared where
their maps have one shape. Shapes: T heads of the model in order, rows = images * W windows, H heads, N queries, M keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ..errors import VitfrostError
from ..vit.sites import AttentionSite

SCALE = 2.0**24
LARGEST = 2.0**62


class SimilaritySums:
    """Sums over images of mean products s_i s_j of the row-centered logits of heads i and j, in fixed point (units of 2^-24).

    The products of every image are rounded once, so parts merge exactly, in any order and from any number of processes. The centered
    logits of one batch are kept until the last layer with maps of their shape has run; `kept_bytes` says how much that is.
    """

    def __init__(self, sites: Sequence[AttentionSite]):
        self.sites = sites
        self.starts = np.cumsum([0, *(site.heads for site in sites)])
        total = int(self.starts[-1])
        self.sums: Int64[np.ndarray, "heads heads"] = np.zeros((total, total), np.int64)
        self._groups: dict[tuple[int, int, int], list[int]] = {}
        for number, site in enumerate(sites):
            self._groups.setdefault((site.windows, site.queries, site.keys), []).append(number)
        self._kept: dict[int, Tensor] = {}

    def observer(self, number: int, allowed: Bool[Tensor, "windows queries keys"] | None) -> Callable[[Tensor], None]:
        """What the site at position `number` calls with its logits [rows, H, N, M]; `allowed` marks the pairs that count."""
        return partial(self._watch, number, allowed)

    def _watch(self, number: int, allowed: Tensor | None, logits: Tensor) -> None:
        site = self.sites[number]
        logits = logits.detach().float().unflatten(0, (-1, site.windows))
        if allowed is None:
            centered = logits - logits.mean(-1, keepdim=True)
        else:
            pairs = allowed[:, None].to(logits.device)
            means = logits.masked_fill(~pairs, 0).sum(-1, keepdim=True) / pairs.sum(-1, keepdim=True)
            centered = (logits - means).masked_fill(~pairs, 0)
        self._kept[number] = centered.transpose(1, 2).flatten(2)  # [images, heads, entries]
        members = self._groups[(site.windows, site.queries, site.keys)]
        if number == members[-1]:
            self._add(members)

    def _add(self, members: list[int]) -> None:
        parts = [self._kept.pop(number) for number in members]
        places = np.concatenate([np.arange(self.starts[number], self.starts[number + 1]) for number in members])
        block = np.ix_(places, places)
        sums = self.sums[block]
        for heads in zip(*parts, strict=True):
            row = torch.cat(heads)
            scaled = (row @ row.T).double().cpu().numpy() * (SCALE / row.shape[1])
            if not np.isfinite(scaled).all() or np.abs(sums + scaled).max() > LARGEST:
                raise VitfrostError(
                    f"cannot calibrate: the logits of {self.sites[members[0]].name} are too large, or not finite, to compare heads"
                )
            sums += np.rint((scaled + scaled.T) / 2).astype(np.int64)  # a product of matrices is symmetric but for rounding
        self.sums[block] = sums


def kept_bytes(sites: Sequence[AttentionSite], batch_size: int) -> int:
    """The most bytes of centered logits (float32) that SimilaritySums keeps at a time."""
    last = {(site.windows, site.queries, site.keys): number for number, site in enumerate(sites)}
    held: dict[int, int] = {}
    most = 0
    for site in sites:
        end = last[site.windows, site.queries, site.keys]
        held[end] = held.get(end, 0) + 4 * batch_size * site.entries
        most = max(most, sum(held.values()))
        if site is sites[end]:
            del held[end]
    return most


def added(a: Int64[np.ndarray, "heads heads"], b: Int64[np.ndarray, "heads heads"]) -> Int64[np.ndarray, "heads heads"]:
    """The sums over both sets of images. Raises VitfrostError where they would not fit."""
    if np.abs(a.astype(np.float64) + b).max(initial=0) > LARGEST:
        raise VitfrostError("statistics whose logits are this large cannot be merged: the sums that compare heads would overflow")
    return a + b


def moments_of(sums: Int64[np.ndarray, "heads heads"], images: int, sites: Sequence[dict[str, Any]]) -> Float64[np.ndarray, "heads heads"]:
    """E[s_i s_j] per attention weight; NaN where the maps of two heads have different shapes. `sites` as in a header."""
    shapes = np.array([(site["maps"][0], *site["maps"][2:]) for site in sites for _ in range(site["heads"])])
    comparable = (shapes[:, None] == shapes[None]).all(-1)
    return np.where(comparable, sums / (SCALE * max(images, 1)), np.nan)
