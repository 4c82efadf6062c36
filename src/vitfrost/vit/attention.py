"""The run-time attention: every head's map is computed, frozen or (later) hallucinated.

Shapes: B images, W windows per image, H heads, N queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

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
        frozen: module with `heads` (indices whose maps have frozen entries) that merges constants into the maps
        observer: called with (maps, values) after the softmax, or with quantised maps if `observe_quantized`
    """

    def __init__(self, original: nn.Module, site: AttentionSite, scale_queries_first: bool):
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
        self.frozen: nn.Module | None = None
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

    def needs_maps(self) -> bool:
        """True where every head's map must be explicit (it is quantised or observed)."""
        return self.observer is not None or self.map_quantizer is not None

    def explicit_maps(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows heads queries keys"]:
        """Softmax maps of equation 11, then observer, quantiser and frozen entries in this order."""
        maps = q @ k.transpose(-2, -1)
        if bias is not None:
            maps = maps + bias
        maps = torch.softmax(maps, dim=-1)
        if self.observer is not None and not self.observe_quantized:
            self.observer(maps, v)
        if self.frozen is None:
            if self.map_quantizer is not None:
                maps = self.map_quantizer(maps)
        else:
            maps = self.frozen(maps, self.map_quantizer)
        if self.observer is not None and self.observe_quantized:
            self.observer(maps, v)
        return maps

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Float[Tensor, "rows heads queries width"]:
        """Mix the values: explicit maps where something needs them, fused attention for all other heads."""
        if self.needs_maps():
            return self.explicit_maps(q, k, v, bias) @ v
        if self.frozen is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        frozen = self.frozen.heads
        fused = self.frozen.other_heads
        if len(fused) == 0:
            return self.frozen(self.explicit_logits(q, k, bias), None) @ v
        per_head = bias is not None and bias.shape[1] > 1
        out = torch.empty_like(v)
        bias_fused = bias[:, fused] if per_head else bias
        out[:, fused] = F.scaled_dot_product_attention(q[:, fused], k[:, fused], v[:, fused], attn_mask=bias_fused, scale=1.0)
        bias_frozen = bias[:, frozen] if per_head else bias
        out[:, frozen] = self.frozen(self.explicit_logits(q[:, frozen], k[:, frozen], bias_frozen), None) @ v[:, frozen]
        return out

    @staticmethod
    def explicit_logits(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """Softmax of the logits of some heads, without observer or quantiser."""
        logits = q @ k.transpose(-2, -1)
        return torch.softmax(logits if bias is None else logits + bias, dim=-1)

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
