"""Which heads of a model a search may window, and what such heads cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configs import WindowHeads
from ..errors import VitfrostError
from ..evaluation.cost import logit_macs
from ..map_sources.frozen import shape_of, shape_of_site
from ..map_sources.outside import mass_outside
from ..methods.windowed_heads import windowed_macs
from ..plans.choose import StatisticsRecord
from ..plans.heads import HeadPlan, LayerPlan
from ..runtime.runtimes import OWN_BITS
from ..timing.sessions import EAGER
from ..vit.names import has_relative_bias
from ..vit.sites import AttentionSite
from .runtimes import Target


@dataclass(frozen=True)
class Windows:
    """Windowed heads of a model, by the place of their attention site: `macs` of one of them per image, where it has fewer than a whole
    map, and of every head the mass `outside` its window, of 1."""

    settings: WindowHeads
    macs: Mapping[int, int]
    outside: Mapping[int, tuple[float, ...]]

    def line(self, place: int, head: int, reason: str | None = None) -> HeadPlan:
        """The line of a plan for a windowed head; with a reason, it says what is outside too."""
        why = None if reason is None else f"{reason}; {100 * self.outside[place][head]:.1f} % of the mass outside"
        return HeadPlan(source="windowed", window=self.settings.window, why=why)

    def fitted(self, place: int, heads: Sequence[int]) -> Tensor | None:
        """What the source of maps would take from the statistics: the shares [heads] that stay outside, where they do."""
        return torch.tensor([self.outside[place][head] for head in heads]) if self.settings.outside == "mean" else None


def find_windows(
    settings: WindowHeads | None, attention: Sequence[AttentionSite], layers: Sequence[LayerPlan], statistics: StatisticsRecord
) -> Windows | None:
    """The heads that may be windowed (None without settings). Raises VitfrostError where there are none, or windows are so wide that they
    save nothing."""
    if settings is None:
        return None
    model, side = statistics.header.model, settings.window
    shapes = {place: shape for place, site in enumerate(attention) if site.windows == 1 and (shape := shape_of_site(site)) is not None}
    if not shapes or has_relative_bias(model.name):
        raise VitfrostError(
            f"Search.over has windows, but no head of {model.name} can be windowed: its maps have windows already, a bias by relative "
            "position, or no patch grid; leave windows out"
        )
    macs = {place: windowed_macs(shape, attention[place].head_dim, side) for place, shape in shapes.items()}
    macs = {place: cost for place, cost in macs.items() if cost < 2 * logit_macs(attention[place]) // attention[place].heads}
    if not macs:
        height, width = max((shape.grid for shape in shapes.values()), key=lambda grid: grid[0] * grid[1])
        raise VitfrostError(
            f"windows of {side} x {side} patches save nothing on a grid of {height} x {width}; give a smaller WindowHeads.window, or leave "
            "windows out of Search.over"
        )
    outside = {}
    for place in macs:
        layer = layers[place]
        shape, known = shape_of(layer, model.image_size), statistics.sites[layer.site]
        outside[place] = tuple(mass_outside(known, shape, head, side) for head in range(len(layer.heads)))
    return Windows(settings, macs, outside)


def refuse_slow_windows(settings: WindowHeads | None, target: Target | None) -> None:
    """Raise VitfrostError for windowed heads on a runtime that has no faster form of them than whole maps."""
    if settings is None or target is None:
        return
    if target.runtime not in (*OWN_BITS, *EAGER):
        raise VitfrostError(
            f"on {target.name} windowed heads are whole maps with a mask, which saves no time; search over windows on native, or leave "
            "windows out of Search.over"
        )
    if target.runtime in OWN_BITS and settings.outside != "none":
        raise VitfrostError(f'{target.name} has no windowed heads that keep a mean of what is outside; give WindowHeads(outside="none")')
