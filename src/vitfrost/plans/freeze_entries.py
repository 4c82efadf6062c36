"""Which single attention weights are frozen: numbers per head, and from these the entries themselves.

Shapes: W windows, H heads, Q queries, K keys. A head's entries are ranked by the criterion, ties by variance, mean and
position; a plan keeps only how many are frozen, so a person can change any head's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Shaped

from ..configs import FreezeEntries
from ..errors import VitfrostError
from .criteria import CRITERIA, SiteArrays
from .heads import COMPUTED, HeadPlan, LayerPlan
from .schema import Plan
from .select import lowest, share, up_to_threshold


@dataclass
class _Candidates:
    """Entries that compete with each other, and how many unmasked ones there are in all."""

    scores: Shaped[np.ndarray, "*shape"]
    variance: Shaped[np.ndarray, "*shape"]
    mean: Shaped[np.ndarray, "*shape"]
    eligible: Bool[np.ndarray, "*shape"]
    unmasked: int

    @classmethod
    def joined(cls, parts: Sequence[_Candidates]) -> _Candidates:
        """All entries of several heads in one row."""
        if len(parts) == 1:
            return parts[0]

        def row(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name).reshape(-1) for part in parts])

        return cls(row("scores"), row("variance"), row("mean"), row("eligible"), sum(part.unmasked for part in parts))

    def rank(self, count: int) -> Bool[np.ndarray, "*shape"]:
        """Mask of the `count` entries that rank lowest."""
        return lowest(self.scores, self.variance, self.mean, self.eligible, count)


def _eligible(layer: LayerPlan, allowed: np.ndarray | None, protect: Sequence[str]) -> Bool[np.ndarray, "windows queries keys"]:
    """Entries of a head that may be frozen: neither masked, nor in a protected row or column of a prefix token."""
    windows, _, queries, keys = layer.maps
    eligible = np.ones((windows, queries, keys), dtype=bool) if allowed is None else allowed.astype(bool)
    if "cls-rows" in protect:
        eligible[:, : layer.prefix_tokens] = False
    if "cls-columns" in protect:
        eligible[:, :, : layer.prefix_tokens] = False
    return eligible


def _heads(site: SiteArrays, layer: LayerPlan, index: int, freeze: FreezeEntries) -> list[_Candidates]:
    """The candidates [W, Q, K] of every head of the site at position `index` in the model."""
    if tuple(site.maps_shape) != layer.maps:
        raise VitfrostError(f"the statistics of {layer.site} have maps {list(site.maps_shape)}, the plan has {list(layer.maps)}")
    eligible = _eligible(layer, site.allowed, freeze.protect)
    scores = CRITERIA[freeze.by](site, freeze.seed, index)
    heads = [
        _Candidates(scores[:, head], site.variance[:, head], site.mean[:, head], eligible, layer.entries_per_head)
        for head in range(layer.maps[1])
    ]
    for head in heads:
        if not all(np.isfinite(key[eligible]).all() for key in (head.scores, head.variance, head.mean)):
            raise VitfrostError(f"the statistics of {layer.site} hold values that are not finite; calibrate again")
    return heads


def _check_ratio(groups: Iterable[_Candidates], ratio: float) -> None:
    """Raise VitfrostError naming the highest possible ratio where protected entries leave too few."""
    possible = [(int(group.eligible.sum()), group.unmasked) for group in groups]
    if any(share(ratio, unmasked) > eligible for eligible, unmasked in possible):
        highest = min(Fraction(eligible, unmasked) for eligible, unmasked in possible)
        most = math.floor(highest * 10_000) / 10_000
        raise VitfrostError(f"FreezeEntries.ratio is {ratio}, but so many entries are protected that at most {most} can be frozen")


def _select(group: _Candidates, freeze: FreezeEntries) -> tuple[np.ndarray, np.ndarray]:
    """Masks, flat, of the group's frozen entries and of those among them that become literal zeros."""
    count = share(freeze.ratio, group.unmasked)
    if freeze.ties == "rank":
        chosen = group.rank(count)
        tied = np.zeros_like(chosen)
    else:
        chosen, tied = up_to_threshold(group.scores, group.eligible, count)
        if freeze.ties == "le":
            tied = np.zeros_like(chosen)
    return chosen.reshape(-1), tied.reshape(-1)


def _head_plans(heads: list[list[_Candidates]], freeze: FreezeEntries) -> list[list[HeadPlan]]:
    """Per layer and head, how many entries are frozen when `freeze.ratio` of every scope's entries are."""
    if freeze.scope == "head":
        groups = [[head] for layer in heads for head in layer]
    elif freeze.scope == "layer":
        groups = list(heads)
    else:
        groups = [[head for layer in heads for head in layer]]
    joined = [_Candidates.joined(group) for group in groups]
    _check_ratio(joined, freeze.ratio)
    plans: list[HeadPlan] = []
    if not groups:
        return [[] for _ in heads]
    for group, together in zip(groups, joined, strict=True):
        ends = np.cumsum([head.eligible.size for head in group])[:-1]
        for chosen, tied in zip(*(np.split(mask, ends) for mask in _select(together, freeze)), strict=True):
            entries = int(chosen.sum())
            plans.append(HeadPlan(source="frozen", entries=entries, zeros=int(tied.sum())) if entries else COMPUTED)
    ordered = iter(plans)
    return [[next(ordered) for _ in layer] for layer in heads]


def with_frozen_entries(layers: Sequence[LayerPlan], settings: FreezeEntries, sites: Mapping[str, SiteArrays]) -> list[LayerPlan]:
    """The layers with the number of frozen entries of every head that has logits. Raises VitfrostError for a protection of tokens that the
    model does not have, and where so many are protected that too few are left."""
    if settings.protect and not any(layer.prefix_tokens for layer in layers):
        raise VitfrostError(
            f"FreezeEntries.protect is {', '.join(settings.protect)}, but the model has no class token or other prefix token"
        )
    heads = [_heads(sites[layer.site], layer, index, settings) for index, layer in enumerate(layers)]
    kept = [[candidates[head] for head in layer.logit_heads] for layer, candidates in zip(layers, heads, strict=True)]
    return [_with_heads(layer, plans) for layer, plans in zip(layers, _head_plans(kept, settings), strict=True)]


def _with_heads(layer: LayerPlan, plans: Sequence[HeadPlan]) -> LayerPlan:
    """The layer with plans for its heads with logits, in order; hallucinated ones stay."""
    heads = list(layer.heads)
    for number, head in zip(layer.logit_heads, plans, strict=True):
        heads[number] = head
    return layer.model_copy(update={"heads": tuple(heads)})


def frozen_maps(
    plan: Plan, site_statistics: SiteArrays, layer: LayerPlan
) -> tuple[Bool[np.ndarray, "windows heads queries keys"], Float[np.ndarray, "windows heads queries keys"]]:
    """Which entries of a layer the plan freezes, and their constants (float32, not yet quantized; 0 outside the mask).

    A head's frozen entries are its `entries` lowest in rank: those that were chosen, whatever the scope, unless the plan was
    edited since. Constants are the means over images, literal zeros for the last `zeros` in rank.
    Raises VitfrostError when a head is to freeze more entries than are neither masked nor protected.
    """
    mask = np.zeros(layer.maps, dtype=bool)
    values = np.zeros(layer.maps, dtype=np.float32)
    if plan.freeze is None:
        return mask, values
    index = next(number for number, other in enumerate(plan.layers) if other.site == layer.site)
    candidates = _heads(site_statistics, layer, index, plan.freeze)
    for number, (head, entries) in enumerate(zip(layer.heads, candidates, strict=True)):
        possible = int(entries.eligible.sum())
        if head.entries > possible:
            where = f"layers[{index}].heads[{number}].entries"
            raise VitfrostError(f"{where} is {head.entries}, but only {possible} can be frozen; the others are masked or protected")
        mask[:, number] = entries.rank(head.entries)
        kept = entries.rank(head.entries - head.zeros) if head.zeros else mask[:, number]
        values[:, number][kept] = entries.mean[kept]
    return mask, values
