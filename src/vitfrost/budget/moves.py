"""What a search can change next: freeze a head, freeze all heads of a layer that are left, factorize a feed-forward projection.

Plain data; sites count in the order in which data passes them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..configs.verbs import Unit
from ..methods.low_rank.cost import largest_useful_rank
from ..vit.sites import AttentionSite, FeedForwardSite

UNITS: tuple[Unit, ...] = get_args(Unit)
# Ranks that a projection may get, relative to its width; others would add measurements, not choice.
RATIOS = (0.75, 2 / 3, 0.5)


@dataclass(frozen=True)
class State:
    """A changed model: per attention site its frozen heads, per feed-forward site the rank of its second projection (None: whole)."""

    heads: tuple[frozenset[int], ...]
    ranks: tuple[int | None, ...]

    @property
    def key(self) -> str:
        """One line that tells states apart: "attention 0: 1 2; attention 3: 0; rank 2: 96", nothing for the original."""
        frozen = [f"attention {place}: {' '.join(map(str, sorted(heads)))}" for place, heads in enumerate(self.heads) if heads]
        return "; ".join(frozen + [f"rank {place}: {rank}" for place, rank in enumerate(self.ranks) if rank is not None])


@dataclass(frozen=True)
class Move:
    """One change. `place` counts the attention sites (`head`, `layer`) or the feed-forward sites (`rank`)."""

    kind: Literal["head", "layer", "rank"]
    site: str
    place: int
    head: int | None = None
    rank: int | None = None

    @property
    def name(self) -> str:
        """ "blocks.3.attn head 1", "blocks.3.attn all heads", "blocks.3.mlp rank 96"."""
        detail = {"head": f"head {self.head}", "layer": "all heads", "rank": f"rank {self.rank}"}[self.kind]
        return f"{self.site} {detail}"

    def applied(self, state: State, heads: int) -> State:
        """The state after this move; `heads` is how many the site has (for a layer)."""
        if self.kind == "rank":
            return replace(state, ranks=_with(state.ranks, self.place, self.rank))
        assert self.kind == "layer" or self.head is not None
        frozen = range(heads) if self.kind == "layer" else (*state.heads[self.place], self.head)
        return replace(state, heads=_with(state.heads, self.place, frozenset(head for head in frozen if head is not None)))


def _with(values: tuple, place: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:place], value, *values[place + 1 :])


class Moves:
    """The moves that a model's sites allow.

    `over`: which kinds. Freezing the last head of a layer is a move of that head, and of the layer only where heads are not searched.
    """

    def __init__(self, attention: Sequence[AttentionSite], feed_forward: Sequence[FeedForwardSite], over: Collection[Unit]):
        self.attention, self.feed_forward, self.over = tuple(attention), tuple(feed_forward), frozenset(over)

    @property
    def start(self) -> State:
        """The original."""
        return State((frozenset(),) * len(self.attention), (None,) * len(self.feed_forward))

    @property
    def end(self) -> State:
        """Everything done that can be done."""
        freezes = self.over & {"heads", "layers"}
        heads = tuple(frozenset(range(site.heads)) if freezes else frozenset() for site in self.attention)
        ranks = tuple(min(ranks_of(site), default=None) if "ranks" in self.over else None for site in self.feed_forward)
        return State(heads, ranks)

    def possible(self, state: State) -> list[Move]:
        """All moves from a state, always in the same order: layer by layer its heads, then all of them; then the ranks."""
        moves: list[Move] = []
        for place, (site, frozen) in enumerate(zip(self.attention, state.heads, strict=True)):
            left = [head for head in range(site.heads) if head not in frozen]
            if "heads" in self.over:
                moves += [Move("head", site.name, place, head=head) for head in left]
            if "layers" in self.over and len(left) > ("heads" in self.over):
                moves.append(Move("layer", site.name, place))
        if "ranks" in self.over:
            for place, (block, rank) in enumerate(zip(self.feed_forward, state.ranks, strict=True)):
                moves += [Move("rank", block.name, place, rank=lower) for lower in ranks_of(block) if rank is None or lower < rank]
        return moves

    def applied(self, move: Move, state: State) -> State:
        """The state after a move."""
        return move.applied(state, self.attention[move.place].heads if move.kind == "layer" else 0)


def ranks_of(block: FeedForwardSite) -> list[int]:
    """The ranks that a block's second projection may get, highest first; only those that save something."""
    largest = largest_useful_rank(block.width, block.hidden)
    ranks = {round(ratio * block.width) for ratio in RATIOS}
    return sorted((rank for rank in ranks if 1 <= rank <= largest), reverse=True)
