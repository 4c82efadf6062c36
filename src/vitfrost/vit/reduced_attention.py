"""Run-time attention with fewer keys than queries: PVT's convolved or pooled keys, Next-ViT's means of consecutive tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .attention import MapAttention
from .head_rows import head_channels, with_rows
from .sites import AttentionSite


class PyramidAttention(MapAttention):
    """timm's PVT v2 attention (ours of version 1 has the same layers): keys and values from `kv` on spatially reduced tokens."""

    q: Any
    kv: Any

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.q, self.kv = original.q, original.kv
        self.sr, self.norm, self.pool, self.act = original.sr, original.norm, original.pool, original.act

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        channels = head_channels(order, self.site.head_dim, self.q.weight.device)
        kept = channels[: logit_heads * self.site.head_dim]
        self.q = with_rows(self.q, kept) if logit_heads else None
        self.kv = with_rows(self.kv, torch.cat([kept, channels + self.site.heads * self.site.head_dim]))

    def reduced(self, x: Float[Tensor, "rows queries channels"], grid: Sequence[int]) -> Float[Tensor, "rows keys channels"]:
        """The tokens that keys and values are made of."""
        if self.sr is None:
            return x
        x = x.transpose(1, 2).unflatten(2, tuple(grid))
        x = self.sr(x if self.pool is None else self.pool(x)).flatten(2).transpose(1, 2)
        x = self.norm(x)
        return x if self.act is None else self.act(x)

    def forward(self, x: Float[Tensor, "rows queries channels"], feat_size: Sequence[int]) -> Float[Tensor, "rows queries channels"]:
        """`feat_size`: height and width of the patch grid."""
        if not self.logit_heads:
            return self.proj_drop(self.proj(self.mixed(None, None, self.heads_of(self.kv(self.reduced(x, feat_size))))))
        k, v = self.kv(self.reduced(x, feat_size)).tensor_split([self.logit_heads * self.site.head_dim], dim=-1)
        return self.proj_drop(self.proj(self.mixed(self.heads_of(self.q(x)), self.heads_of(k), self.heads_of(v))))


class PooledAttention(MapAttention):
    """timm's Next-ViT attention (E-MHSA): keys and values from means of consecutive tokens."""

    q: Any
    k: Any
    v: Any

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.q, self.k, self.v = original.q, original.k, original.v
        self.sr, self.norm = original.sr, original.norm

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        channels = head_channels(order, self.site.head_dim, self.q.weight.device)
        kept = channels[: logit_heads * self.site.head_dim]
        self.q, self.k = (with_rows(layer, kept) if logit_heads else None for layer in (self.q, self.k))
        self.v = with_rows(self.v, channels)

    def forward(self, x: Float[Tensor, "rows queries channels"]) -> Float[Tensor, "rows queries channels"]:
        """Same signature as timm's EfficientAttention."""
        q = None if self.q is None else self.heads_of(self.q(x))
        if self.sr is not None:
            x = self.norm(self.sr(x.transpose(1, 2))).transpose(1, 2)
        k = None if self.k is None else self.heads_of(self.k(x))
        return self.proj_drop(self.proj(self.mixed(q, k, self.heads_of(self.v(x)))))
