"""Hallucinated maps: made of the logits of the layer's other heads (hMHSA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs import Hallucinate
from ..errors import VitfrostError
from ..vit.names import has_relative_bias
from ..vit.sites import AttentionSite
from .source import MapSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..methods.hallucination.fit import HeadChoice
    from ..plans.heads import HeadPlan, LayerPlan
    from ..plans.schema import Plan
    from ..statistics.record import Statistics

NO_SWIN = "hallucination does not support Swin, BEiT and their like: every head has a relative position bias of its own"


class Hallucinated(MapSource):
    """A head's map starts `like` that of another head."""

    name = "hallucinated"
    fields = ("like",)
    part = "hallucinate"
    module = "hallucination"
    cost = "hallucination"
    of_logits = True

    def check_layer(self, layer: LayerPlan) -> None:
        if not layer.logit_heads:
            raise ValueError("heads are hallucinated, but none is left to make their maps of; leave at least one computed")
        for number in layer.hallucinated:
            like = layer.heads[number].like
            if like is not None and like not in layer.logit_heads:
                raise ValueError(f"heads[{number}].like is {like}; it should be one of the heads {', '.join(map(str, layer.logit_heads))}")
        if layer.maps[0] > 1:
            raise ValueError(f"heads are hallucinated, but the maps have {layer.maps[0]} windows; {NO_SWIN}; leave them computed")

    def check_plan(self, head: HeadPlan, plan: Plan) -> None:
        super().check_plan(head, plan)
        if has_relative_bias(plan.model.name):
            raise ValueError(f"source is 'hallucinated', but {NO_SWIN}; leave it computed")

    def needs_statistics(self, settings: Hallucinate) -> bool:
        return settings.fits_mix

    def fit(self, layer: LayerPlan, plan: Plan, statistics: Statistics) -> Any:
        """Second moments of the heads' row-centered logits, where the statistics have them."""
        if plan.hallucinate is None or (statistics.similarity is None and not plan.hallucinate.fits_mix):
            return None
        import torch

        return torch.from_numpy(statistics.head_moments(layer.site))

    def make(self, site: AttentionSite, layer: LayerPlan, settings: Hallucinate, allowed: Tensor | None, fitted: Any) -> nn.Module:
        """With moments the mix starts in closed form where the settings say so, without them as copies."""
        from ..methods.hallucination.fit import fit_mix, fit_pairs
        from ..methods.hallucination.maps import HeadHallucination

        if settings.intra_map == "key-grid" and site.grid_of_keys is None:
            raise VitfrostError(
                f"{site.name} has keys that lie on no patch grid (each is a mean of consecutive tokens), which intra_map key-grid needs; "
                'plan with Hallucinate(intra_map="3x3"), or leave the heads of this layer computed'
            )
        kept = layer.logit_heads
        places = tuple(kept.index(head) for head in sources(layer))
        made = HeadHallucination(len(kept), places, settings, prefix_tokens=site.prefix_tokens, key_grid=site.grid_of_keys)
        if fitted is not None and settings.fits_mix:
            moments, choice = mixed_moments(fitted, layer)
            made.mix.set_mix(fit_pairs(moments, choice) if settings.inter_map == "pair" else fit_mix(moments, choice, settings.ridge))
        return made

    def macs(self, site: AttentionSite, layer: LayerPlan, settings: Hallucinate) -> int:
        from ..methods.hallucination.cost import generation_macs

        count, made = len(layer.logit_heads), len(layer.hallucinated)
        return generation_macs(site.queries, site.keys, count, made, settings, site.prefix_tokens)


def sources(layer: LayerPlan) -> tuple[int, ...]:
    """For each hallucinated head, ascending, the head it starts as: `like`, else the next lower one with logits, or the first."""
    return tuple(
        next((other for other in reversed(layer.logit_heads) if other < head), layer.logit_heads[0])
        if (like := layer.heads[head].like) is None
        else like
        for head in layer.hallucinated
    )


def mixed_moments(moments: Tensor, layer: LayerPlan) -> tuple[Tensor, HeadChoice]:
    """The second moments [mixed, mixed] of a layer's heads that have logits or are made of them, out of those of all heads; and which
    those are among them. The others take no part."""
    from ..methods.hallucination.fit import HeadChoice

    mixed = sorted(layer.logit_heads + layer.hallucinated)
    kept = tuple(mixed.index(head) for head in layer.logit_heads)
    places = tuple(layer.logit_heads.index(source) for source in sources(layer))
    return moments[mixed][:, mixed], HeadChoice(kept, places)
