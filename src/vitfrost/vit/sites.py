"""What vitfrost sees of a model: attention sites, feed-forward sites, and the linear layers between them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LinearRole = Literal["stem", "qkv", "proj", "fc1", "fc2", "reduction", "head"]


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer. A map is `queries x keys`; an image has `windows * heads` maps here.

    `grid` is the patch grid of one map (the window's own for windowed attention); the first `prefix_tokens`
    tokens (CLS, distillation, registers) lie outside it.
    """

    name: str
    index: int
    heads: int
    head_dim: int
    width: int
    queries: int
    keys: int
    prefix_tokens: int
    grid: tuple[int, int]
    windows: int = 1
    shift: tuple[int, int] = (0, 0)
    masked: bool = False

    @property
    def maps_shape(self) -> tuple[int, int, int, int]:
        """[windows, heads, queries, keys] of one image's maps."""
        return (self.windows, self.heads, self.queries, self.keys)

    @property
    def entries(self) -> int:
        """Attention weights of one image at this site, masked pairs included."""
        return self.windows * self.heads * self.queries * self.keys

    def signature(self) -> dict[str, Any]:
        """What must agree for statistics or a plan to fit this site."""
        return {"name": self.name, "heads": self.heads, "maps": list(self.maps_shape), "prefix_tokens": self.prefix_tokens}


@dataclass(frozen=True)
class LinearSite:
    """A linear (or patch-embedding convolution) layer that may be quantised.

    `norm` names the LayerNorm whose output only this layer reads, where its scales may be re-parameterised into it.
    `tokens` is how many positions of one image pass through the layer.
    """

    name: str
    role: LinearRole
    tokens: int
    norm: str | None = None


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward block: fc1 [width -> hidden], activation, fc2 [hidden -> width]."""

    name: str
    index: int
    width: int
    hidden: int
    tokens: int


@dataclass(frozen=True)
class ModelSites:
    """All sites of a model in the order in which data passes them."""

    family: str
    image_size: tuple[int, int]
    attention: tuple[AttentionSite, ...]
    feed_forward: tuple[FeedForwardSite, ...]
    linears: tuple[LinearSite, ...] = field(default=())

    def signature(self) -> list[dict[str, Any]]:
        """The part of the sites that statistics and plans are bound to."""
        return [site.signature() for site in self.attention]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON output."""
        return asdict(self)
