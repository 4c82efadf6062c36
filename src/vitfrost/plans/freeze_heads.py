"""Which whole heads or layers to freeze, and to what kind of constant.

Shapes: W windows, H heads, Q queries, K keys, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float

from ..configs import FreezeHeads
from ..errors import VitfrostError
from ..map_sources.frozen import fitted, known_kind, shape_of
from ..methods.constant_heads.constants import Shape
from ..methods.constant_heads.cost import head_cost
from ..methods.constant_heads.kinds import KINDS
from .criteria import CRITERIA, HeadArrays, SiteArrays
from .heads import HeadPlan, LayerPlan
from .select import share

# Costs of kinds are compared at this head width, which statistics do not name; it is that of all published ViTs of 64 channels a head.
HEAD_DIM = 64


def structure_error(whole: Float[np.ndarray, "windows queries keys"], site: SiteArrays, head: int) -> float:
    """What a constant map adds to the squared error at the layer's output beyond that of the mean map: sum of (A^mu - c)^2 E||W_O v||^2."""
    wrong = (site.mean[:, head] - whole) ** 2
    return float((wrong * site.value_norm[:, head, None, :]).sum(dtype=np.float64))


def constant_error(constant: Any, kind: str, shape: Shape | None, site: SiteArrays | HeadArrays, head: int) -> float:
    """The structure error of a fitted constant; over the sampled weights where the statistics are of whole heads."""
    if not isinstance(site, HeadArrays):
        return structure_error(KINDS[kind].whole(constant, shape, site.allowed), site, head)
    known = site.sample
    at = KINDS[kind].at(constant, shape, site.places, site.allowed)
    return float(((known.mean[0, head, 0] - at) ** 2 * known.value_norm[0, head] * site.weights).sum(dtype=np.float64))


def freezing_error(site: SiteArrays | HeadArrays, head: int) -> float:
    """What freezing a head to its mean map does at the layer's output: sum of E[(A - A^mu)^2] E||W_O v||^2."""
    if isinstance(site, HeadArrays):
        known = site.sample
        return float((known.variance[0, head, 0] * known.value_norm[0, head] * site.weights).sum(dtype=np.float64))
    return float((site.variance[:, head] * site.value_norm[:, head, None, :]).sum(dtype=np.float64))


def candidates(settings: FreezeHeads, shape: Shape | None, of_sums: bool = False) -> list[tuple[str, int | None]]:
    """Kinds and windows that a head may get, unless its map has no patch grid: then only those that need none. `of_sums`: only those that
    sums of maps are enough for."""
    auto = settings.kind == "auto"
    kinds = [each for each in reversed(KINDS.values()) if each.in_auto and not (each.needs_grid and shape is None)]
    kinds = [each for each in kinds if each.of_sums or not of_sums]
    kinds = kinds if auto else [known_kind(settings.kind, shape)]
    return [(kind.name, window) for kind in kinds for window in kind.windows(settings.window, shape, auto)]


def choose_kind(
    settings: FreezeHeads, layer: LayerPlan, site: SiteArrays | HeadArrays, shape: Shape | None, head: int
) -> tuple[HeadPlan, float]:
    """The cheapest constant whose error stays within the head's budget, and that error relative to the layer's freezing error.

    The budget is `tolerance` times what freezing a head of this layer does to its output on average. Where no constant stays within it, the
    head gets its mean map, or with statistics of whole heads the constant of least error.
    """
    windows, heads, queries, keys = layer.maps
    scale = sum(freezing_error(site, other) for other in range(heads)) / heads
    masked = site.allowed is not None
    of_sums = isinstance(site, HeadArrays) and shape is not None
    kinds = candidates(settings, shape, of_sums)
    costs = {kind: head_cost(kind[0], shape, (windows, queries, keys), HEAD_DIM, kind[1], masked).total for kind in kinds}
    found: dict[tuple[str, int | None], float] = {}
    for kind, window in sorted(kinds, key=lambda kind: costs[kind]):
        error = constant_error(fitted(site, shape, head, kind, window), kind, shape, site, head)
        found[kind, window] = error
        if len(kinds) == 1 or error <= settings.tolerance * scale:
            break
    else:
        if of_sums:
            (kind, window), error = min(found.items(), key=lambda each: each[1])
        else:
            kind, window, error = "dense", None, 0.0
    return HeadPlan(source="frozen", constant=kind, window=window), error / scale if scale else 0.0


def head_scores(site: SiteArrays | HeadArrays, by: str, seed: int, index: int) -> Float[np.ndarray, heads]:
    """A criterion of whole heads: of errors the sum over the entries, of the others the mean; masked pairs are left out."""
    if by not in CRITERIA:
        raise VitfrostError(f"FreezeHeads.by is '{by}'; it should be one of {', '.join(CRITERIA)}")
    if isinstance(site, HeadArrays):
        summed: Float[np.ndarray, heads] = CRITERIA[by](site.sample, seed, index)[0, :, 0].astype(np.float64) @ site.weights
        return summed if CRITERIA[by].additive else summed / site.weights.sum()
    scores = CRITERIA[by](site, seed, index).astype(np.float64)
    count = prod(scores.shape) // scores.shape[1]
    if site.allowed is not None:
        scores = scores * site.allowed[:, None]
        count = int(site.allowed.sum())
    total = scores.sum(axis=(0, 2, 3))
    return total if CRITERIA[by].additive else total / max(count, 1)


def chosen_heads(scores: Sequence[Float[np.ndarray, heads]], layers: Sequence[LayerPlan], settings: FreezeHeads) -> list[set[int]]:
    """Per layer, which heads are frozen: the lowest in score, `ratio` of all heads, or of all layers with all their heads.

    A layer that hallucinates heads keeps one whose logits they are made of. Raises VitfrostError where too few are left.
    """
    assert settings.ratio is not None
    chosen: list[set[int]] = [set() for _ in layers]
    if settings.unit == "layer":
        possible = [place for place, layer in enumerate(layers) if not layer.hallucinated]
        count = share(settings.ratio, len(layers))
        ranked = sorted(possible, key=lambda place: (float(scores[place].sum()), place))
        _check_count(count, len(ranked), "layers", settings.ratio)
        for place in ranked[:count]:
            chosen[place] = set(range(layers[place].maps[1]))
        return chosen
    ranked_heads = sorted(
        ((float(scores[place][head]), place, head) for place, layer in enumerate(layers) for head in layer.logit_heads),
    )
    count, taken = share(settings.ratio, sum(layer.maps[1] for layer in layers)), 0
    for _, place, head in ranked_heads:
        layer = layers[place]
        if taken == count or (layer.hallucinated and len(chosen[place]) == len(layer.logit_heads) - 1):
            continue
        chosen[place].add(head)
        taken += 1
    _check_count(count, taken, "heads", settings.ratio)
    return chosen


def first_heads(layers: Sequence[LayerPlan], settings: FreezeHeads, image_size: Sequence[int]) -> list[LayerPlan]:
    """The layers with the first heads of each, or the first layers, frozen whole: without statistics, for a model that is only timed or
    that is going to be trained. `auto` takes local kernels where there is a patch grid."""
    assert settings.ratio is not None
    count = share(settings.ratio, len(layers))
    made = []
    for place, layer in enumerate(layers):
        heads = (
            layer.logit_heads[: share(settings.ratio, layer.maps[1])] if settings.unit == "head" else layer.logit_heads * (place < count)
        )
        if layer.hallucinated and len(heads) == len(layer.logit_heads):
            heads = heads[:-1]
        kind, window = candidates(settings, shape_of(layer, image_size))[0]
        window = KINDS[kind].windows(settings.window, None, auto=False)[0]
        plans = list(layer.heads)
        for head in heads:
            plans[head] = HeadPlan(source="frozen", constant=kind, window=window)
        made.append(LayerPlan.model_validate(layer.model_dump() | {"heads": [plan.model_dump() for plan in plans]}))
    return made


def _check_count(wanted: int, possible: int, what: str, ratio: float) -> None:
    if wanted > possible:
        raise VitfrostError(
            f"FreezeHeads.ratio is {ratio}, that is {wanted} {what}, but only {possible} can be frozen beside hallucinated heads; give less"
        )


def with_constants(
    layers: Sequence[LayerPlan],
    chosen: Sequence[Iterable[int]],
    settings: FreezeHeads,
    sites: Mapping[str, SiteArrays] | Mapping[str, HeadArrays],
    image_size: Sequence[int],
    why: Mapping[tuple[int, int], str] | None = None,
) -> list[LayerPlan]:
    """The layers with the chosen heads frozen whole, each to the kind of constant that the settings give it."""
    made = []
    for place, (layer, frozen_heads) in enumerate(zip(layers, chosen, strict=True)):
        plans, heads = list(layer.heads), set(frozen_heads)
        for head in sorted(heads):
            frozen, error = choose_kind(settings, layer, sites[layer.site], shape_of(layer, image_size), head)
            reason = (why or {}).get((place, head))
            text = f"structure adds {100 * error:.1f} % to the layer's freezing error"
            plans[head] = frozen.model_copy(update={"why": text if reason is None else f"{reason}; {text}"})
        for head in layer.hallucinated:
            if plans[head].like in heads:  # its map starts like that of another head then
                plans[head] = plans[head].model_copy(update={"like": None})
        made.append(LayerPlan.model_validate(layer.model_dump() | {"heads": [plan.model_dump() for plan in plans]}))
    return made


def frozen_by_criterion(
    layers: Sequence[LayerPlan],
    settings: FreezeHeads,
    sites: Mapping[str, SiteArrays] | Mapping[str, HeadArrays],
    image_size: Sequence[int],
) -> list[LayerPlan]:
    """The layers with the share of heads (or layers) frozen that ranks lowest by the settings' criterion."""
    assert settings.by is not None
    scores = [head_scores(sites[layer.site], settings.by, settings.seed, index) for index, layer in enumerate(layers)]
    chosen = chosen_heads(scores, layers, settings)
    why = {(place, head): f"{settings.by} {scores[place][head]:.4g}" for place, heads in enumerate(chosen) for head in heads}
    return with_constants(layers, chosen, settings, sites, image_size, why)
