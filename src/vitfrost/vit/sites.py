"""What vitfrost sees of a model: attention sites, feed-forward sites, and the linear layers between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

LinearRole = Literal["stem", "qkv", "query", "key", "value", "key_value", "proj", "fc1", "fc2",
                     "spatial_reduction", "convolution", "reduction", "head"]  # fmt: skip


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer. A map is `queries x keys`; an image has `windows * heads` maps here.

    `grid` is the patch grid of one map (the window's own for windowed attention); the first `prefix_tokens`
    tokens (CLS, distillation, registers) lie outside it. Where keys are spatially reduced, they are fewer than the queries and
    `key_grid` is theirs; it is None where the keys are the queries' tokens, or lie on no grid (means of consecutive tokens).
    `logit_heads` (None: all) have queries and keys; `mixed_apart` of the others have their values mixed by a
    module of their own (constant maps); `windowed` of those with logits are computed by one. `source_macs`: multiply-accumulates of
    what makes maps, by the part of the costs.
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
    key_grid: tuple[int, int] | None = None
    logit_heads: int | None = None
    mixed_apart: int = 0
    windowed: int = 0
    source_macs: tuple[tuple[str, int], ...] = ()

    @property
    def grid_of_keys(self) -> tuple[int, int] | None:
        """The patch grid of the keys behind the prefix tokens; None where they lie on none."""
        return self.grid if self.key_grid is None and self.keys == self.queries else self.key_grid

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
    """A linear layer or a convolution that may be quantized.

    `norm` names the LayerNorm whose output only this layer reads, where its scales may be re-parameterized into it.
    `tokens` is how many positions of one image the layer puts out. `split`: how many outputs each projection has that the
    layer stacks (queries, keys, values); empty where they are equal.
    """

    name: str
    role: LinearRole
    tokens: int
    norm: str | None = None
    split: tuple[int, ...] = ()


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward block: fc1 [width -> hidden], activation, fc2 [hidden -> width], linear or convolutions of 1 x 1. In a gated block
    the first part makes gate and input, `hidden` wide each.

    `index` counts these blocks. `block` tells whether attention or a convolution comes before it in its block.
    """

    name: str
    index: int
    width: int
    hidden: int
    tokens: int
    block: Literal["transformer", "convolution"] = "transformer"

    def signature(self) -> dict[str, Any]:
        """What must agree for a plan to fit this site."""
        return {"name": self.name, "width": self.width, "hidden": self.hidden}


@dataclass(frozen=True)
class ModelSites:
    """All sites of a model in the order in which data passes them.

    `kept`: layers of other parts, which nothing changes; they count in the costs.
    """

    family: str
    image_size: tuple[int, int]
    attention: tuple[AttentionSite, ...]
    feed_forward: tuple[FeedForwardSite, ...]
    linears: tuple[LinearSite, ...] = field(default=())
    kept: tuple[LinearSite, ...] = field(default=())

    def keeping(self, layers: Iterable[LinearSite]) -> ModelSites:
        """The same with more layers that nothing changes."""
        return replace(self, kept=(*self.kept, *layers))

    def signature(self) -> list[dict[str, Any]]:
        """The part of the sites that statistics and plans are bound to."""
        return [site.signature() for site in self.attention]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON output."""
        return asdict(self)
