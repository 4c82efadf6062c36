"""Which heads of a layer to hallucinate, and which heads they start as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from ..configs import Hallucinate
from ..errors import VitfrostError
from ..map_sources.hallucinated import NO_SWIN
from ..vit.names import has_relative_bias
from .heads import COMPUTED, HeadPlan, LayerPlan
from .select import share


def hallucinated_layers(
    layers: Sequence[LayerPlan],
    settings: Hallucinate,
    moments_of: Callable[[str], Float[np.ndarray, "heads heads"]] | None,
    model_name: str,
) -> list[LayerPlan]:
    """The layers with floor(share h) of their h heads hallucinated; a layer with too few heads stays as it is.

    `moments_of` gives a site's second moments of row-centered logits (needed to choose medoids, or by what is explained).
    Raises VitfrostError where they are needed and not given, and for Swin.
    """
    if settings.compares_heads and moments_of is None:
        raise VitfrostError(
            f"choosing heads by {settings.by} needs their similarity, which statistics hold; plan from statistics, or by first"
        )
    made = []
    for index, layer in enumerate(layers):
        heads = layer.maps[1]
        count = share(settings.share, heads)
        if count and (layer.maps[0] > 1 or has_relative_bias(model_name)):
            raise VitfrostError(f"{NO_SWIN} ({layer.site} of {model_name}); plan without Hallucinate.share")
        if count == 0:
            made.append(layer)
            continue
        moments = moments_of(layer.site) if settings.compares_heads and moments_of is not None else None
        kept, likes = choose(heads, heads - count, settings, index, moments)
        others = iter(likes)
        plans = [COMPUTED if head in kept else HeadPlan(source="hallucinated", like=next(others)) for head in range(heads)]
        made.append(LayerPlan.model_validate(layer.model_dump() | {"heads": [plan.model_dump() for plan in plans]}))
    return made


def choose(
    heads: int, computed: int, settings: Hallucinate, index: int, moments: Float[np.ndarray, "heads heads"] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The computed heads of the layer at position `index`, and for each other head, ascending, the computed one it starts as."""
    if settings.compares_heads:
        import torch

        from ..methods.hallucination.fit import choose_explained, choose_heads, correlations

        known = torch.from_numpy(np.asarray(moments))
        by_medoids = settings.by == "medoids"
        choice = choose_heads(correlations(known), computed) if by_medoids else choose_explained(known, computed, settings.ridge)
        return choice.kept, tuple(choice.kept[source] for source in choice.sources)
    if settings.by == "first":
        kept = tuple(range(computed))
        return kept, tuple(place % computed for place in range(heads - computed))
    drawn = np.random.default_rng([settings.seed, index]).permutation(heads)
    kept = tuple(sorted(drawn[:computed].tolist()))
    return kept, tuple(kept[place % computed] for place in range(heads - computed))
