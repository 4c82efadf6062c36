"""What a search can change next: freeze or window a head, freeze all heads of a layer that are left, factorize a feed-forward projection.

Plain data; sites count in the order in which data passes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..configs.verbs import Unit
from ..methods.low_rank.cost import largest_useful_rank
from ..vit.sites import AttentionSite, FeedForwardSite

# Ranks that a projection may get, relative to its width; others would add measurements, not choice.
RATIOS = (0.75, 2 / 3, 0.5)


MoveKind = Literal["head", "layer", "rank", "window"]


@dataclass(frozen=True)
class State:
    """A changed model: per attention site its frozen heads, per feed-forward site the rank of its second projection (None: whole), and per
    attention site its windowed heads (none, if not given)."""

    heads: tuple[frozenset[int], ...]
    ranks: tuple[int | None, ...]
    windows: tuple[frozenset[int], ...] = ()

    def __post_init__(self) -> None:
        if not self.windows:
            object.__setattr__(self, "windows", (frozenset(),) * len(self.heads))

    @property
    def key(self) -> str:
        """One line that tells states apart: "attention 0: 1 2; attention 3: 0; windows 2: 1; rank 2: 96", nothing for the original."""
        frozen = [f"attention {place}: {_joined(heads)}" for place, heads in enumerate(self.heads) if heads]
        windowed = [f"windows {place}: {_joined(heads)}" for place, heads in enumerate(self.windows) if heads]
        return "; ".join([*frozen, *windowed, *(f"rank {place}: {rank}" for place, rank in enumerate(self.ranks) if rank is not None)])


@dataclass(frozen=True)
class Move:
    """One change. `place` counts the attention sites (`head`, `layer`, `window`) or the feed-forward sites (`rank`)."""

    kind: MoveKind
    site: str
    place: int
    head: int | None = None
    rank: int | None = None

    @property
    def name(self) -> str:
        """ "blocks.3.attn head 1", "blocks.3.attn all heads", "blocks.3.attn head 1 windowed", "blocks.3.mlp rank 96"."""
        head = f"head {self.head}"
        detail = {"head": head, "layer": "all heads", "window": f"{head} windowed", "rank": f"rank {self.rank}"}[self.kind]
        return f"{self.site} {detail}"

    def applied(self, state: State, heads: int) -> State:
        """The state after this move; `heads` is how many the site has (for a layer)."""
        if self.kind == "rank":
            return replace(state, ranks=_with(state.ranks, self.place, self.rank))
        own = frozenset(range(heads)) if self.head is None else frozenset({self.head})
        windowed = state.windows[self.place]
        if self.kind == "window":
            return replace(state, windows=_with(state.windows, self.place, windowed | own))
        frozen = _with(state.heads, self.place, state.heads[self.place] | own)
        return replace(state, heads=frozen, windows=_with(state.windows, self.place, windowed - own))


def _joined(heads: Iterable[int]) -> str:
    return " ".join(map(str, sorted(heads)))


def _with(values: tuple, place: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (*values[:place], value, *values[place + 1 :])


class Moves:
    """The moves that a model's sites allow.

    `over`: which kinds. Freezing the last head of a layer is a move of that head, and of the layer only where heads are not searched.
    `windowable`: places of the attention sites whose heads may be windowed; a windowed head can still be frozen.
    """

    def __init__(
        self,
        attention: Sequence[AttentionSite],
        feed_forward: Sequence[FeedForwardSite],
        over: Collection[Unit],
        windowable: Collection[int] = (),
    ):
        self.attention, self.feed_forward, self.over = tuple(attention), tuple(feed_forward), frozenset(over)
        self.windowable = frozenset(windowable) if "windows" in self.over else frozenset()

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
        windowed = frozenset() if freezes else self.windowable
        windows = tuple(frozenset(range(site.heads)) if n in windowed else frozenset() for n, site in enumerate(self.attention))
        return State(heads, ranks, windows)

    def possible(self, state: State) -> list[Move]:
        """All moves from a state, always in the same order: layer by layer its heads, then all of them; the ranks; then windows."""
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
        for place in sorted(self.windowable):
            site, changed = self.attention[place], state.heads[place] | state.windows[place]
            moves += [Move("window", site.name, place, head=head) for head in range(site.heads) if head not in changed]
        return moves

    def applied(self, move: Move, state: State) -> State:
        """The state after a move."""
        return move.applied(state, self.attention[move.place].heads if move.kind == "layer" else 0)


def ranks_of(block: FeedForwardSite) -> list[int]:
    """The ranks that a block's second projection may get, highest first; only those that save something."""
    largest = largest_useful_rank(block.width, block.hidden)
    ranks = {round(ratio * block.width) for ratio in RATIOS}
    return sorted((rank for rank in ranks if 1 <= rank <= largest), reverse=True)
