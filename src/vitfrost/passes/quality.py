"""How well hallucinated maps meet the maps that they stand for, layer by layer on equal inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..map_sources.hallucinated import mixed_moments, sources
from ..methods.hallucination.fit import HeadChoice, unexplained_shares
from ..methods.hallucination.maps import HeadHallucination
from ..plans.schema import Plan
from ..vit.attention import MapAttention
from ..vit.families import install_map_attention
from ..vit.load import device_of
from .structure import Fitted


def explained(moments: Float[Tensor, "heads heads"], choice: HeadChoice, mix: Float[Tensor, "hallucinated computed"]) -> list[float]:
    """Share of each hallucinated head's row-centered logit energy that `mix` of the computed heads explains (1: all; can be negative)."""
    return (1 - unexplained_shares(moments, choice.kept, mix)).tolist()


def hallucinated_heads(
    plan: Plan,
    model: nn.Module,
    fitted: Fitted,
    seen: tuple[nn.Module, Float[Tensor, "images 3 height width"]] | None,
) -> dict[str, list[dict[str, Any]]]:
    """For every hallucinated head by site: head, like, the share of its logits that the mix explains, and its map's distance.

    `fitted`: of `structure.fit_sources`, with the heads' second moments (explained: None without, and for a mix of maps after the softmax).
    `seen`: the original model, and images to run through it (distance: None without).
    """
    layers = [layer for layer in plan.layers if layer.hallucinated]
    distances: dict[str, list[float]] = {}
    if seen is not None:
        original, pixels = seen
        copied = copy.deepcopy(original).to(device_of(model))
        install_map_attention(copied)
        distances = map_distances(copied, model, [layer.site for layer in layers], pixels.to(device_of(model)))
    found: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        likes, shares = sources(layer), None
        made = model.get_submodule(f"{layer.site}.hallucination")
        assert isinstance(made, HeadHallucination)
        similarity = fitted.get(layer.site, {}).get("hallucinated")
        if similarity is not None and made.options.space == "logits":
            moments, choice = mixed_moments(similarity, layer)
            shares = explained(moments, choice, made.mix.matrix().detach().cpu())
        found[layer.site] = [
            {
                "head": head,
                "like": likes[place],
                "explained": None if shares is None else shares[place],
                "distance": distances[layer.site][head] if layer.site in distances else None,
            }
            for place, head in enumerate(layer.hallucinated)
        ]
    return found


@torch.no_grad()
def map_distances(
    original: nn.Module, changed: nn.Module, sites: Sequence[str], pixels: Float[Tensor, "images 3 height width"], batch_size: int = 16
) -> dict[str, list[float]]:
    """Mean total variation distance (0: equal rows, 1: disjoint ones) between the maps of both models, per site and head.

    Both have run-time attention at the same sites. The changed layers see the inputs of the original's, so errors do not add up
    from layer to layer. Nothing stays on the models.
    """
    sums = {site: torch.zeros(0) for site in sites}
    watched = [_Pair(original.get_submodule(site), changed.get_submodule(site)) for site in sites]
    handles: list[Any] = []
    try:
        for site, pair in zip(sites, watched, strict=True):
            pair.first.observe(partial(pair.see, 0))
            pair.second.observe(partial(pair.see, 1))
            handles.append(pair.first.register_forward_hook(partial(pair.compare, sums, site), with_kwargs=True))
        for batch in pixels.split(batch_size):
            original(batch)
    finally:
        for handle in handles:
            handle.remove()
        for pair in watched:
            pair.first.observe()
            pair.second.observe()
    return {site: (total / len(pixels)).tolist() for site, total in sums.items()}


class _Pair:
    """One attention layer of two models, and the maps that they gave last."""

    def __init__(self, first: nn.Module, second: nn.Module):
        assert isinstance(first, MapAttention)
        assert isinstance(second, MapAttention)
        self.first, self.second = first, second
        self.maps: dict[int, Tensor] = {}

    def see(self, which: int, maps: Tensor, values: Tensor) -> None:
        self.maps[which] = maps

    def compare(self, sums: dict[str, Tensor], site: str, module: nn.Module, inputs: Any, options: Any, output: Any) -> None:
        self.second(*inputs, **options)
        distance = (self.maps[0] - self.maps[1]).abs().sum(-1).mul(0.5).mean(-1).double().sum(0).cpu() / self.first.site.windows
        sums[site] = distance if not len(sums[site]) else sums[site] + distance
        self.maps.clear()
