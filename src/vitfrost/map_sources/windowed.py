"""Windowed maps: computed, but every patch looks only at a window of the patch grid and at the prefix tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..configs import WindowHeads
from ..errors import VitfrostError
from ..vit.sites import AttentionSite
from .frozen import shape_of, shape_of_site
from .outside import mass_outside
from .source import MapSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..plans.heads import HeadPlan, LayerPlan
    from ..plans.schema import Plan
    from ..statistics.record import Statistics


class Windowed(MapSource):
    """A head keeps its queries and keys; one window for all such heads of a layer."""

    name = "windowed"
    fields = ("window",)
    part = "windowed"
    module = "windowed"
    of_queries = True

    def keeps_logits(self, head: HeadPlan) -> bool:
        return True

    def check_head(self, head: HeadPlan) -> None:
        if head.window is None:
            raise ValueError("window is missing, and a windowed head has one; write its side in patches")

    def check_layer(self, layer: LayerPlan) -> None:
        if len({layer.heads[number].window for number in layer.heads_of(self.name)}) > 1:
            raise ValueError("heads have windows of different sides, but a layer's are applied together; give them one")
        if layer.hallucinated:
            raise ValueError("heads are windowed beside hallucinated ones, whose maps are made of whole logits; leave one of them out")

    def needs_statistics(self, settings: WindowHeads) -> bool:
        return settings.outside == "mean"

    def fit(self, layer: LayerPlan, plan: Plan, statistics: Statistics) -> Any:
        """The mean mass outside the window of every head, where the settings keep it."""
        if plan.windowed is None or plan.windowed.outside != "mean":
            return None
        import torch

        shape, window = shape_of(layer, plan.model.image_size), window_of(layer)
        heads = layer.heads_of(self.name)
        return torch.tensor([mass_outside(statistics.sites[layer.site], shape, head, window) for head in heads])

    def make(self, site: AttentionSite, layer: LayerPlan, settings: Any, allowed: Tensor | None, fitted: Any) -> nn.Module:
        from ..methods.windowed_heads import WindowedHeads

        shape = shape_of_site(site)
        if shape is None or site.windows > 1:
            raise VitfrostError(f"{site.name} has windows already, or keys off the patch grid, so its heads cannot be windowed; leave them")
        return WindowedHeads(shape, len(layer.heads_of(self.name)), window_of(layer), fitted)

    def macs(self, site: AttentionSite, layer: LayerPlan, settings: Any) -> int:
        from ..methods.windowed_heads import windowed_macs

        shape = shape_of_site(site)
        return 0 if shape is None else len(layer.heads_of(self.name)) * windowed_macs(shape, site.head_dim, window_of(layer))


def window_of(layer: LayerPlan) -> int:
    """The side of the window of a layer's windowed heads."""
    window = layer.heads[layer.heads_of("windowed")[0]].window
    assert window is not None
    return window
