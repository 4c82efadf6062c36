"""The layers that stand in for a model's own in the states of a search: attention with frozen heads, factorized projections.

They are those that `compress` makes, so a state measured here is what its plan gives (but for the images that factors are fitted to).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..configs import Compact, FreezeHeads
from ..map_sources.frozen import fitted, shape_of
from ..methods.low_rank.moments import InputMoments
from ..passes.structure import compact_projection, install_layer
from ..plans.choose import StatisticsRecord
from ..plans.compact import FeedForwardPlan
from ..plans.freeze_heads import choose_kind
from ..plans.heads import HeadPlan, LayerPlan
from ..vit.attention import MapAttention
from ..vit.families import allowed_pairs, install_map_attention
from ..vit.feed_forward import second_projection
from ..vit.sites import ModelSites
from .moves import State


class Replacements:
    """Puts states into a model, in place; layers of the state that is there already stay as they are.

    `model` is the caller's own copy, and is left with run-time attention. `layers` are the plan's lines of its attention sites with
    all heads computed; every head's constant is chosen once, from the statistics. `moments`: of what second projections read.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: ModelSites,
        layers: Sequence[LayerPlan],
        statistics: StatisticsRecord,
        constants: FreezeHeads,
        compact: Compact,
        moments: Mapping[str, InputMoments],
    ):
        self.model, self.layers, self.compact, self.moments = model, tuple(layers), compact, moments
        self._blocks = [FeedForwardPlan(site=site.name, width=site.width, hidden=site.hidden) for site in sites.feed_forward]
        self._attention: list[MapAttention] = list(install_map_attention(model).values())
        self._allowed = [allowed_pairs(model, layer.site) for layer in self.layers]
        self._projections: list[Any] = [model.get_submodule(second_projection(model, block.site)) for block in self._blocks]
        self._factorized: dict[tuple[int, int], nn.Module] = {}
        size = statistics.header.model.image_size
        self.frozen: list[list[HeadPlan]] = []
        self._constants: list[list[Any]] = []
        for layer in self.layers:
            site, shape = statistics.sites[layer.site], shape_of(layer, size)
            heads = [choose_kind(constants, layer, site, shape, head)[0] for head in range(len(layer.heads))]
            self.frozen.append(heads)
            self._constants.append(
                [fitted(site, shape, number, head.constant or "dense", head.window) for number, head in enumerate(heads)]
            )
        self.state = State((frozenset(),) * len(self._attention), (None,) * len(self._blocks))

    @property
    def attention_sites(self) -> list[str]:
        """Names of the attention layers, in the order of a state's heads."""
        return [layer.site for layer in self.layers]

    @property
    def feed_forward_sites(self) -> list[str]:
        """Names of the feed-forward blocks, in the order of a state's ranks."""
        return [block.site for block in self._blocks]

    def install(self, state: State) -> None:
        """Bring the model into a state; where a layer of it cannot be made, the model stays as it is."""
        made: dict[str, nn.Module] = {}
        for place, (old, heads) in enumerate(zip(self.state.heads, state.heads, strict=True)):
            if old != heads:
                made[self.layers[place].site] = self._attention_with(place, heads)
        for place, (old_rank, rank) in enumerate(zip(self.state.ranks, state.ranks, strict=True)):
            if old_rank != rank:
                made[second_projection(self.model, self._blocks[place].site)] = self._projection_with(place, rank)
        for name, module in made.items():
            self.model.set_submodule(name, module)
        self.state = state

    def _attention_with(self, place: int, frozen: frozenset[int]) -> nn.Module:
        original = self._attention[place]
        if not frozen:
            return original
        changed = copy.deepcopy(original)
        heads = tuple(self.frozen[place][head] if head in frozen else computed for head, computed in enumerate(self.layers[place].heads))
        layer = self.layers[place].model_copy(update={"heads": heads})
        fitted_heads = {"frozen": [self._constants[place][head] for head in layer.constant]}
        install_layer(changed, layer, {}, self._allowed[place], fitted_heads)
        return changed

    def _projection_with(self, place: int, rank: int | None) -> nn.Module:
        original: nn.Module = self._projections[place]
        if rank is None:
            return original
        if (place, rank) not in self._factorized:
            block = self._blocks[place].model_copy(update={"rank": rank})
            made, _ = compact_projection(self._projections[place], block, self.compact, self.moments.get(block.site))
            self._factorized[place, rank] = made.to(self._projections[place].weight.device).eval()
        return self._factorized[place, rank]
