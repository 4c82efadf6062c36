"""The lines of a plan that say of every head where its maps come from, checked.

Validators raise ValueError with a text that starts with the path of the field below their own model; `strict.describe` puts the rest of the
path in front, so every error names the field, its value and what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ..configs.methods import Kind, Window
from ..map_sources import SOURCES, MapSource
from ..strict import Count, Positive, Strict

HEAD_FIELDS = ("entries", "zeros", "like", "constant", "window", "dilation")


def _known(name: str) -> str:
    if name not in SOURCES:
        raise PydanticCustomError("source", "it should be one of {names}", {"names": ", ".join(SOURCES)})
    return name


class HeadPlan(Strict):
    """Where a head's maps come from. `entries` counts the frozen attention weights over all windows of the head.

    The last `zeros` of them in rank become literal zeros instead of means: the ties of equation 15 read as printed.
    A head that is frozen whole has a `constant` instead: its kind, and the `window` of a local one; it has no queries and keys.
    `dilation`: how many patches the taps of its kernel are apart (None: 1), as after a resize; a `window` counts taps.
    `why`: what was measured when it was chosen. A hallucinated head has no queries and keys either; its map starts `like` that of
    another head of its layer.
    """

    source: Annotated[str, AfterValidator(_known)]
    entries: Count = 0
    zeros: Count = 0
    like: Count | None = None
    constant: Kind | None = None
    window: Window | None = None
    dilation: Annotated[int, Field(strict=True, ge=2, le=256)] | None = None
    why: str | None = None

    @property
    def map_source(self) -> MapSource:
        """What makes its maps."""
        return SOURCES[self.source]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that say more than the source does."""
        return {name: value for name in HEAD_FIELDS if (value := getattr(self, name))}

    @model_validator(mode="after")
    def _fields_are_those_of_the_source(self) -> HeadPlan:
        if self.zeros > self.entries:
            raise ValueError(f"zeros is {self.zeros}, more than the {self.entries} frozen entries")
        for name, value in self.fields.items():
            if name not in self.map_source.fields:
                owner = next(source.name for source in SOURCES.values() if name in source.fields)
                raise ValueError(f"{name} is {value!r}, but a {self.source} head has none; leave it out, or write source: {owner}")
        self.map_source.check_head(self)
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

    def heads_of(self, source: str) -> tuple[int, ...]:
        """Heads whose maps a module of this source makes, ascending."""
        return tuple(
            number
            for number, head in enumerate(self.heads)
            if head.source == source and (head.map_source.of_queries or not head.map_source.keeps_logits(head))
        )

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """Heads whose maps are made of the other heads', ascending."""
        return self.heads_of("hallucinated")

    @property
    def constant(self) -> tuple[int, ...]:
        """Heads whose whole map is a constant, ascending."""
        return self.heads_of("frozen")

    @property
    def logit_heads(self) -> tuple[int, ...]:
        """Heads with queries and keys, ascending: computed ones, and those with frozen entries; then those that are windowed."""
        kept = [number for number, head in enumerate(self.heads) if head.map_source.keeps_logits(head)]
        return tuple(sorted(kept, key=lambda number: self.heads[number].map_source.of_queries))

    @property
    def sources(self) -> list[MapSource]:
        """The sources whose modules make maps, in the order of their heads: first the one whose maps are made of logits."""
        there = [source for source in SOURCES.values() if self.heads_of(source.name)]
        return sorted(there, key=lambda source: not source.of_logits)

    @property
    def order(self) -> tuple[int, ...]:
        """All heads: those with queries and keys, then those of every source."""
        others = (source for source in self.sources if not source.of_queries)
        return self.logit_heads + tuple(head for source in others for head in self.heads_of(source.name))

    @model_validator(mode="after")
    def _sources_have_what_they_need(self) -> LayerPlan:
        of_logits = [source.name for source in self.sources if source.of_logits]
        if len(of_logits) > 1:
            raise ValueError(f"heads are {' and '.join(of_logits)}, but a layer has only one source whose maps are made of logits")
        for source in self.sources:
            source.check_layer(self)
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
