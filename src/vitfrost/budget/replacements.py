"""The layers that stand in for a model's own in the states of a search: attention with frozen and windowed heads, factorized projections.

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
from .windows import Windows


class Replacements:
    """Puts states into a model, in place; layers of the state that is there already stay as they are.

    `model` is the caller's own copy, and is left with run-time attention. `layers` are the plan's lines of its attention sites with
    all heads computed; every head's constant is chosen once, from the statistics. `moments`: of what second projections read. `windows`:
    the heads that may be windowed (None: none).
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
        windows: Windows | None = None,
    ):
        self.model, self.layers, self.compact, self.moments = model, tuple(layers), compact, moments
        self.windows = windows
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

    @property
    def kinds(self) -> list[list[tuple[str, int | None]]]:
        """By layer and head, the constant that it gets where it is frozen, and its window."""
        return [[(head.constant or "dense", head.window) for head in heads] for heads in self.frozen]

    def install(self, state: State) -> None:
        """Bring the model into a state; where a layer of it cannot be made, the model stays as it is."""
        made: dict[str, nn.Module] = {}
        for place, layer in enumerate(self.layers):
            heads, windows = state.heads[place], state.windows[place]
            if (heads, windows) != (self.state.heads[place], self.state.windows[place]):
                made[layer.site] = self._attention_with(place, state)
        for place, (old_rank, rank) in enumerate(zip(self.state.ranks, state.ranks, strict=True)):
            if old_rank != rank:
                made[second_projection(self.model, self._blocks[place].site)] = self._projection_with(place, rank)
        for name, module in made.items():
            self.model.set_submodule(name, module)
        self.state = state

    def lines(self, place: int, state: State) -> tuple[HeadPlan, ...]:
        """The lines of a layer's heads in a state, without reasons."""
        lines = [self.frozen[place][n] if n in state.heads[place] else line for n, line in enumerate(self.layers[place].heads)]
        for head in state.windows[place]:
            assert self.windows is not None
            lines[head] = self.windows.line(place, head)
        return tuple(lines)

    def _attention_with(self, place: int, state: State) -> nn.Module:
        original = self._attention[place]
        if not (state.heads[place] or state.windows[place]):
            return original
        changed = copy.deepcopy(original)
        layer = self.layers[place].model_copy(update={"heads": self.lines(place, state)})
        fitted_heads: dict[str, Any] = {"frozen": [self._constants[place][head] for head in layer.constant]}
        if self.windows is not None and state.windows[place]:
            fitted_heads["windowed"] = self.windows.fitted(place, layer.heads_of("windowed"))
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
