"""The lines of a plan that say of every head where its maps come from, checked.

Validators raise ValueError with a text that starts with the path of the field below their own model; `strict.describe` puts the rest of the
path in front, so every error names the field, its value and what is allowed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ..configs.methods import Kind, Window
from ..methods.constant_heads.kinds import KINDS
from ..strict import Count, Positive, Strict
from .structure import NO_SWIN


class HeadPlan(Strict):
    """Where a head's maps come from. `entries` counts the frozen attention weights over all windows of the head.

    The last `zeros` of them in rank become literal zeros instead of means: the ties of equation 15 read as printed.
    A head that is frozen whole has a `constant` instead: its kind, and the `window` of a local one; it has no queries and keys.
    `why`: what was measured when it was chosen. A hallucinated head has no queries and keys either; its map starts `like` that of
    another head of its layer.
    """

    source: Literal["computed", "frozen", "hallucinated"]
    entries: Count = 0
    zeros: Count = 0
    like: Count | None = None
    constant: Kind | None = None
    window: Window | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _constant_goes_with_frozen(self) -> HeadPlan:
        if self.constant is not None and self.source != "frozen":
            raise ValueError(f"constant is '{self.constant}', but a {self.source} head has none; leave it out, or write source: frozen")
        if self.constant is not None and self.entries:
            raise ValueError(f"entries is {self.entries}, but constant freezes the whole head; leave one of them out")
        windowed = self.constant is not None and KINDS[self.constant].has_window
        if windowed and self.window is None:
            raise ValueError(f"window is missing, and a {self.constant} constant has one")
        if self.window is not None and not windowed:
            names = " and ".join(kind.name for kind in KINDS.values() if kind.has_window)
            raise ValueError(f"window is {self.window}, but only {names} ones have one")
        return self

    @model_validator(mode="after")
    def _source_and_entries_agree(self) -> HeadPlan:
        if self.source != "frozen" and self.entries:
            raise ValueError(f"entries is {self.entries}, but a {self.source} head has none; leave it out, or write source: frozen")
        if self.source != "hallucinated" and self.like is not None:
            raise ValueError(f"like is {self.like}, but a {self.source} head is like itself; leave it out, or write source: hallucinated")
        if self.source == "frozen" and not self.entries and self.constant is None:
            raise ValueError("entries is 0, but a frozen head has at least 1, or a constant; write one, or source: computed")
        if self.zeros > self.entries:
            raise ValueError(f"zeros is {self.zeros}, more than the {self.entries} frozen entries")
        return self


COMPUTED = HeadPlan(source="computed")


class LayerPlan(Strict):
    """The heads of one attention site. `maps` is [windows, heads, queries, keys].

    `unmasked` is how many entries of a head its shift mask leaves (None: all); only they can be frozen.
    """

    site: str
    maps: tuple[Positive, Positive, Positive, Positive]
    prefix_tokens: Count = 0
    unmasked: Positive | None = None
    heads: tuple[HeadPlan, ...]

    @property
    def entries_per_head(self) -> int:
        """How many attention weights one head has that can be frozen."""
        windows, _, queries, keys = self.maps
        return windows * queries * keys if self.unmasked is None else self.unmasked

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """Heads without queries and keys, ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.source == "hallucinated")

    @property
    def constant(self) -> tuple[int, ...]:
        """Heads whose whole map is a constant, without queries and keys, ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.constant is not None)

    @property
    def logit_heads(self) -> tuple[int, ...]:
        """Heads with queries and keys (computed ones, and those with frozen entries), ascending."""
        return tuple(number for number, head in enumerate(self.heads) if head.source != "hallucinated" and head.constant is None)

    @property
    def order(self) -> tuple[int, ...]:
        """All heads: those with queries and keys, those hallucinated from them, those with constant maps."""
        return self.logit_heads + self.hallucinated + self.constant

    @model_validator(mode="after")
    def _hallucinated_heads_have_sources(self) -> LayerPlan:
        if self.hallucinated and not self.logit_heads:
            raise ValueError("heads are hallucinated, but none is left to make their maps of; leave at least one computed")
        for number in self.hallucinated:
            like = self.heads[number].like
            if like is not None and like not in self.logit_heads:
                raise ValueError(f"heads[{number}].like is {like}; it should be one of the heads {', '.join(map(str, self.logit_heads))}")
        if self.hallucinated and self.maps[0] > 1:
            raise ValueError(f"heads are hallucinated, but the maps have {self.maps[0]} windows; {NO_SWIN}; leave them computed")
        return self

    @model_validator(mode="after")
    def _heads_fit_maps(self) -> LayerPlan:
        windows, heads, queries, keys = self.maps
        if len(self.heads) != heads:
            raise ValueError(f"heads has {len(self.heads)} lines, but maps says that there are {heads} heads")
        if self.unmasked is not None and self.unmasked > windows * queries * keys:
            raise ValueError(f"unmasked is {self.unmasked}, more than the {windows * queries * keys} entries of a head")
        for number, head in enumerate(self.heads):
            if head.entries > self.entries_per_head:
                raise ValueError(f"heads[{number}].entries is {head.entries}, more than the {self.entries_per_head} entries of a head")
        return self


def sources(layer: LayerPlan) -> tuple[int, ...]:
    """For each hallucinated head, ascending, the head it starts as: `like`, else the next lower one with logits, or the first."""
    return tuple(
        next((other for other in reversed(layer.logit_heads) if other < head), layer.logit_heads[0])
        if (like := layer.heads[head].like) is None
        else like
        for head in layer.hallucinated
    )
