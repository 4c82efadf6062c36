"""Run-time attention over the whole image with what plain Vision Transformers do not have: rotary positions, relative position biases,
biases of queries and values apart from their projection, three projections, a gate.

Shapes: rows = images, N tokens, H heads, g heads with queries and keys, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention import MapAttention, Projections
from .compat import import_timm
from .head_rows import head_channels, with_rows
from .sites import AttentionSite, LinearRole, LinearSite

import_timm()
from timm.layers import apply_rot_embed_cat  # noqa: E402  (timm must be imported through the guard)

SEPARATE = ("q_proj", "k_proj", "v_proj")


class GlobalAttention(MapAttention):
    """timm's EvaAttention, AttentionRope, RelPosAttention, and BEiT's Attention.

    Heads without queries and keys have no rotation and no position bias either.
    """

    qkv: Any
    rel_pos: Any
    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None
    relative_position_bias_table: nn.Parameter | None
    relative_position_index: Tensor

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.qkv = original.qkv
        for name in SEPARATE:
            setattr(self, name, getattr(original, name, None))
        for name in ("q_bias", "v_bias"):
            self.register_parameter(name, getattr(original, name, None))
        self.q_norm = getattr(original, "q_norm", nn.Identity())
        self.k_norm = getattr(original, "k_norm", nn.Identity())
        self.norm = getattr(original, "norm", nn.Identity())
        self.gate: Any = getattr(original, "gate", None)
        self.rotated_in_halves = bool(getattr(original, "rotate_half", False))
        self.rel_pos = getattr(original, "rel_pos", None)
        self.register_parameter("relative_position_bias_table", getattr(original, "relative_position_bias_table", None))
        if self.relative_position_bias_table is not None:
            self.register_buffer("relative_position_index", original.relative_position_index, persistent=False)

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        inner = self.site.heads * self.site.head_dim
        channels = head_channels(order, self.site.head_dim, self.proj.weight.device)
        kept = channels[: logit_heads * self.site.head_dim]
        if self.qkv is not None:
            self.qkv = with_rows(self.qkv, torch.cat([kept, kept + inner, channels + 2 * inner]))
        else:
            for name, rows in zip(SEPARATE, (kept, kept, channels), strict=True):
                setattr(self, name, with_rows(getattr(self, name), rows) if len(rows) else None)
        if self.v_bias is not None:
            self.q_bias = _chosen(self.q_bias, kept) if logit_heads else None
            self.v_bias = _chosen(self.v_bias, channels)
        for name, parameter in list(self.norm.named_parameters(recurse=False)):  # of the heads side by side, before `proj`
            setattr(self.norm, name, _chosen(parameter, channels))
        if self.gate is not None:
            self.gate = with_rows(self.gate, channels)
        table = self.relative_position_bias_table
        if table is not None:
            heads = list(order[:logit_heads])
            self.relative_position_bias_table = nn.Parameter(table.detach()[:, heads], table.requires_grad) if heads else None
        if not logit_heads:
            self.rel_pos = None

    @property
    def has_relative_bias(self) -> bool:
        return self.relative_position_bias_table is not None or self.rel_pos is not None

    def project(self, x: Float[Tensor, "rows tokens channels"]) -> Projections:
        """Queries and keys [rows, g, N, D] (None where g is 0), values [rows, H, N, D]."""
        q: Any
        k: Any
        v: Any
        if self.qkv is None:
            q, k, v = (None if (layer := getattr(self, name)) is None else layer(x) for name in SEPARATE)
        else:
            cut = self.logit_heads * self.site.head_dim
            q, k, v = self.qkv(x).tensor_split([cut, 2 * cut], dim=-1)
        if self.v_bias is not None:
            v = v + self.v_bias
            q = q if self.q_bias is None else q + self.q_bias
        if q is None or k is None or not self.logit_heads:
            return None, None, self.heads_of(v)
        return self.q_norm(self.heads_of(q)), self.k_norm(self.heads_of(k)), self.heads_of(v)

    def rotate(self, heads: Float[Tensor, "rows heads tokens width"], angles: Tensor) -> Float[Tensor, "rows heads tokens width"]:
        """Queries or keys turned by the positions of their patches; prefix tokens have none. `angles`: sines and cosines [N, 2 D], or
        those of every head of the original [H, N, 2 D]."""
        if angles.ndim > 2 and angles.shape[-3] == self.site.heads and self.order[: self.logit_heads] != tuple(range(self.site.heads)):
            angles = angles[..., list(self.order[: self.logit_heads]), :, :]
        prefix = self.site.prefix_tokens
        turned = apply_rot_embed_cat(heads[:, :, prefix:], angles, half=self.rotated_in_halves)
        return torch.cat([heads[:, :, :prefix], turned], dim=2).type_as(heads) if prefix else turned.type_as(heads)

    def logit_bias(self, shared: Tensor | None) -> Float[Tensor, "1 g tokens tokens"] | None:
        """The position bias of the heads with logits: the layer's own, and one [1, H, N, N] that all layers have (None: there is none)."""
        heads = list(self.order[: self.logit_heads])
        if shared is not None and heads != list(range(shared.shape[1])):
            shared = shared[:, heads]
        if self.relative_position_bias_table is not None:
            bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
            bias = bias.view(*self.relative_position_index.shape, -1).permute(2, 0, 1).unsqueeze(0)
        elif self.rel_pos is not None:
            bias = self.rel_pos.get_bias()[:, heads]
        else:
            return shared
        return bias if shared is None else bias + shared

    def forward(
        self,
        x: Float[Tensor, "rows tokens channels"],
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        shared_rel_pos_bias: Tensor | None = None,
        shared_rel_pos: Tensor | None = None,
    ) -> Float[Tensor, "rows tokens channels"]:
        """Same names as timm's modules have."""
        if attn_mask is not None or is_causal:
            raise ValueError("vitfrost's attention has no caller-given mask; it sees the whole image")
        gate = None if self.gate is None else self.gate(x).sigmoid()
        q, k, v = self.project(x)
        if q is not None and k is not None and rope is not None:
            q, k = self.rotate(q, rope), self.rotate(k, rope)
        shared = shared_rel_pos_bias if shared_rel_pos is None else shared_rel_pos
        x = self.norm(self.mixed(q, k, v, self.logit_bias(shared) if self.logit_heads else None))
        return self.proj_drop(self.proj(x if gate is None else x * gate))


def _chosen(parameter: Tensor | None, channels: Tensor) -> nn.Parameter:
    assert parameter is not None
    return nn.Parameter(parameter.detach()[channels], parameter.requires_grad)


def attention_linears(attn: Any, name: str, tokens: int, norm: str | None) -> list[LinearSite]:
    """The linear layers of such an attention. `norm`: the LayerNorm before it, where nothing but this attention reads it."""
    made = []
    if attn.qkv is not None:
        made.append(LinearSite(f"{name}.qkv", "qkv", tokens, None if getattr(attn, "gate", None) is not None else norm))
    else:
        roles: tuple[LinearRole, ...] = ("query", "key", "value")
        made += [LinearSite(f"{name}.{part}", role, tokens) for part, role in zip(SEPARATE, roles, strict=True)]
    if getattr(attn, "gate", None) is not None:
        made.append(LinearSite(f"{name}.gate", "value", tokens))
    return [*made, LinearSite(f"{name}.proj", "proj", tokens)]
