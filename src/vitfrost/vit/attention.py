"""The run-time attention: every head's map is computed, frozen or (later) hallucinated.

Shapes: B images, W windows per image, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .sites import AttentionSite

MapObserver = Callable[[Tensor, Tensor], None]


class MapAttention(nn.Module):
    """Multi-head self-attention whose maps can be observed, quantised and frozen.

    Takes over the layers of a timm attention module under their own names, so state dicts keep their keys.
    Heads whose map nobody needs run through fused attention; the others get an explicit map.

    Attributes set by the compressor (None: nothing happens there):
        query_quantizer, key_quantizer, value_quantizer: modules over [B*W, H, N, D]
        map_quantizer: module over the softmax output [B*W, H, N, M]
        frozen: module that merges constants into the maps and groups the heads (see compression.frozen)
        observer: called with (maps, values) after the softmax, or with quantised maps if `observe_quantized`
    """

    relative_position_bias_table: nn.Parameter | None
    relative_position_index: Tensor

    def __init__(self, original: Any, site: AttentionSite, scale_queries_first: bool):
        super().__init__()
        self.site = site
        self.scale = site.head_dim**-0.5
        self.scale_queries_first = scale_queries_first
        self.qkv = original.qkv
        self.q_norm = getattr(original, "q_norm", nn.Identity())
        self.k_norm = getattr(original, "k_norm", nn.Identity())
        self.norm = getattr(original, "norm", nn.Identity())
        self.proj = original.proj
        if hasattr(original, "relative_position_bias_table"):
            self.relative_position_bias_table = original.relative_position_bias_table
            self.register_buffer("relative_position_index", original.relative_position_index, persistent=False)
        else:
            self.relative_position_bias_table = None
        self.query_quantizer: nn.Module | None = None
        self.key_quantizer: nn.Module | None = None
        self.value_quantizer: nn.Module | None = None
        self.map_quantizer: nn.Module | None = None
        self.frozen: Any = None  # a compression.frozen.FrozenMaps, which lies above this package
        self.observer: MapObserver | None = None
        self.observe_quantized = False

    def relative_bias(self) -> Float[Tensor, "1 heads queries keys"] | None:
        """Learned bias of Swin's windows, gathered per pair; None for global attention."""
        if self.relative_position_bias_table is None:
            return None
        area = self.site.queries
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(area, area, -1)
        return bias.permute(2, 0, 1).unsqueeze(0)

    def logit_bias(self, rows: int, mask: Tensor | None) -> Tensor | None:
        """Relative bias plus shift mask [W, N, M], broadcastable to [B*W, H, N, M]; None where there is neither."""
        bias = self.relative_bias()
        if mask is None:
            return bias
        windows = mask.shape[0]
        mask = mask.view(1, windows, 1, *mask.shape[1:]).expand(rows // windows, -1, -1, -1, -1)
        mask = mask.reshape(rows, 1, *mask.shape[3:])
        return mask if bias is None else bias + mask

    def maps_of(self, heads: list[int] | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows used q k"]:
        """Softmax maps (equation 11) of `heads` (None: all), then observer, quantiser and frozen entries, in this order."""
        if heads is not None:
            q, k = q[:, heads], k[:, heads]
            bias = bias[:, heads] if bias is not None and bias.shape[1] > 1 else bias
        logits = q @ k.transpose(-2, -1)
        maps = torch.softmax(logits if bias is None else logits + bias, dim=-1)
        if self.observer is not None and not self.observe_quantized:
            self.observer(maps, v)
        if self.frozen is not None:
            maps = self.frozen(maps, self.map_quantizer, heads)
        elif self.map_quantizer is not None:
            maps = self.map_quantizer(maps)
        if self.observer is not None and self.observe_quantized:
            self.observer(maps, v)
        return maps

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows heads queries width"]:
        """Mix the values. Maps are explicit only where something needs them: heads that are neither observed, quantised
        nor frozen go through fused attention, wholly frozen heads need no queries and keys at all."""
        quantised = self.map_quantizer is not None
        if self.frozen is None and not quantised and self.observer is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        if self.frozen is None or self.observer is not None:
            return self.maps_of(None, q, k, v, bias) @ v
        constant, fused = self.frozen.constant_heads, [] if quantised else self.frozen.other_heads
        explicit = sorted(self.frozen.partial_heads + (self.frozen.other_heads if quantised else []))
        if len(explicit) == self.site.heads:
            return self.maps_of(None, q, k, v, bias) @ v
        out = torch.empty_like(v)
        if fused:
            bias_fused = bias[:, fused] if bias is not None and bias.shape[1] > 1 else bias
            out[:, fused] = F.scaled_dot_product_attention(q[:, fused], k[:, fused], v[:, fused], attn_mask=bias_fused, scale=1.0)
        if explicit:
            out[:, explicit] = self.maps_of(explicit, q, k, v, bias) @ v[:, explicit]
        if constant:
            maps = self.frozen.constant_maps(self.map_quantizer)
            windows = v[:, constant].reshape(-1, maps.shape[0], len(constant), *v.shape[2:])
            out[:, constant] = (maps @ windows).reshape(v.shape[0], len(constant), *v.shape[2:])
        return out

    def forward(
        self,
        x: Float[Tensor, "rows queries channels"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "rows queries channels"]:
        """Same signature as timm's Attention (`attn_mask`, `is_causal`) and WindowAttention (`mask`)."""
        if attn_mask is not None or is_causal:
            raise ValueError("vitfrost's attention has no caller-given mask; it sees the whole image")
        rows, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.site.heads, self.site.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.scale_queries_first:
            q = q * self.scale
        if self.query_quantizer is not None:
            q = self.query_quantizer(q)
        if self.key_quantizer is not None:
            k = self.key_quantizer(k)
        if self.value_quantizer is not None:
            v = self.value_quantizer(v)
        if not self.scale_queries_first:
            q = q * self.scale
        x = self.attend(q, k, v, self.logit_bias(rows, mask))
        x = x.transpose(1, 2).reshape(rows, tokens, -1)
        return self.proj(self.norm(x))
