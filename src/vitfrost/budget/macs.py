"""What a state costs in multiply-accumulates: the formulas of constant_heads.cost and low_rank.cost, layer by layer.

Equal to what evaluation.cost counts on the changed model, without making it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

from torch import nn

from ..configs.verbs import Unit
from ..evaluation.cost import logit_macs, macs_by_part
from ..map_sources.frozen import shape_of_site
from ..methods.constant_heads.cost import constant_macs
from ..methods.low_rank.cost import feed_forward_macs
from ..vit.sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites
from .moves import State, ranks_of

# Of the projections that a layer stacks, how many make queries or keys.
_QUERY_KEY_SHARE = {"qkv": 2 / 3, "query": 1.0, "key": 1.0, "key_value": 0.5}


class MacsOfStates:
    """Multiply-accumulates per image of a model's states. `kinds[place][head]` is the constant that a head gets where it is frozen;
    `windowed[place]` what the map and the mixing of a windowed head take."""

    def __init__(
        self,
        model: nn.Module,
        sites: ModelSites,
        kinds: Sequence[Sequence[tuple[str, int | None]]],
        windowed: Mapping[int, int] | None = None,
    ):
        self.sites, self.kinds, self.windowed = sites, kinds, windowed or {}
        self.original = sum(macs_by_part(model, sites).values())
        self._projections = [sum(_query_key_macs(model, linear, site) for linear in sites.linears) for site in sites.attention]
        self._attention = cache(self._attention_of)

    def total(self, state: State) -> int:
        """Of the whole model in this state."""
        heads = enumerate(zip(state.heads, state.windows, strict=True))
        return self.original - sum(self.saved_by_heads(place, frozen, windowed) for place, (frozen, windowed) in heads) - sum(
            _saved_by_rank(block, rank) for block, rank in zip(self.sites.feed_forward, state.ranks, strict=True) if rank is not None
        )  # fmt: skip

    def saved_by_heads(self, place: int, frozen: frozenset[int], windowed: frozenset[int] = frozenset()) -> int:
        """What freezing and windowing these heads of a site saves; below 0 where applying their constants costs more."""
        return self._attention(place, frozenset(), 0) - self._attention(place, frozen, len(windowed))

    def floor(self, over: Collection[Unit]) -> float:
        """The share of the original's that a search over these units can come down to."""
        saved = 0
        if {"heads", "layers", "windows"} & set(over):
            for place, kinds in enumerate(self.kinds):
                everything = frozenset(range(len(kinds)))
                sets = [everything] if {"heads", "layers"} & set(over) else []
                if "heads" in over:  # small kernels are applied as a convolution only where all of a layer's are small
                    windows = sorted({window for _, window in kinds if window is not None})
                    sets += [frozenset(n for n, (_, own) in enumerate(kinds) if own is not None and own <= most) for most in windows]
                saves = [self.saved_by_heads(place, heads) for heads in sets]
                if place in self.windowed:
                    saves += [self.saved_by_heads(place, heads, everything - heads) for heads in (frozenset[int](), *sets)]
                saved += max(0, *saves)
        if "ranks" in over:
            saved += sum(max((_saved_by_rank(block, rank) for rank in ranks_of(block)), default=0) for block in self.sites.feed_forward)
        return 1 - saved / self.original

    def _attention_of(self, place: int, frozen: frozenset[int], windowed: int) -> int:
        """Projections to queries and keys, logits, and maps times values of one site."""
        site = self.sites.attention[place]
        moving = site.heads - len(frozen)
        moved = moving * (self._projections[place] // site.heads) + (moving - windowed) * (2 * logit_macs(site) // site.heads)
        moved += windowed * self.windowed[place] if windowed else 0
        if not frozen:
            return moved
        kinds = [self.kinds[place][head] for head in sorted(frozen)]
        return moved + constant_macs(shape_of_site(site), site.maps_shape, site.head_dim, kinds)


def _query_key_macs(model: nn.Module, linear: LinearSite, site: AttentionSite) -> int:
    if linear.name.rpartition(".")[0] != site.name or linear.role not in _QUERY_KEY_SHARE:
        return 0
    return round(linear.tokens * model.get_parameter(f"{linear.name}.weight").numel() * _QUERY_KEY_SHARE[linear.role])


def _saved_by_rank(block: FeedForwardSite, rank: int) -> int:
    whole, factorized = (feed_forward_macs(block.tokens, block.width, block.hidden, each) for each in (None, rank))
    return whole - factorized
