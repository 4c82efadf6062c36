"""timm's Swin Transformers of version 2: cosine attention in windows, a position bias made by a small network, norms behind layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnsupportedModel
from .attention import MapAttention, Projections, masked_bias
from .compat import import_timm
from .forward import ForwardPass
from .head_rows import head_channels, with_rows
from .kinds import is_kind, named
from .sites import AttentionSite, ModelSites
from .swin import allowed_pairs as allowed_pairs
from .swin import stage_pass, stage_sites

import_timm()
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, WindowAttention  # noqa: E402  (see import_timm)

KINDS = (SwinTransformerV2,)
NAMES = ("swinv2_*",)
LARGEST_SCALE = math.log(1 / 0.01)  # of logits, as timm bounds it
BIAS_RANGE = 16.0


def matches(model: nn.Module) -> bool:
    """True for timm's SwinTransformerV2, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


class CosineAttention(MapAttention):
    """timm's WindowAttention of Swin version 2: logits are cosines times a scale per head, plus a position bias from 0 to 16."""

    qkv: Any
    cpb_mlp: Any
    logit_scale: Any
    q_bias: Any
    v_bias: Any
    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.qkv, self.cpb_mlp = original.qkv, original.cpb_mlp
        for name in ("q_bias", "v_bias", "logit_scale"):
            self.register_parameter(name, getattr(original, name))
        for name in ("relative_coords_table", "relative_position_index"):
            self.register_buffer(name, getattr(original, name), persistent=False)

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        inner = self.site.heads * self.site.head_dim
        channels = head_channels(order, self.site.head_dim, self.qkv.weight.device)
        kept, first = channels[: logit_heads * self.site.head_dim], list(order[:logit_heads])
        self.qkv = with_rows(self.qkv, torch.cat([kept, kept + inner, channels + 2 * inner]))
        if self.v_bias is not None:
            self.v_bias = nn.Parameter(self.v_bias.detach()[channels], self.v_bias.requires_grad)
            self.q_bias = nn.Parameter(self.q_bias.detach()[kept], self.q_bias.requires_grad) if first else None
        if first:
            self.logit_scale = nn.Parameter(self.logit_scale.detach()[first], self.logit_scale.requires_grad)
            self.cpb_mlp[-1] = with_rows(self.cpb_mlp[-1], torch.tensor(first, device=channels.device))
        else:
            self.logit_scale, self.cpb_mlp = None, None

    @property
    def has_relative_bias(self) -> bool:
        return self.cpb_mlp is not None

    def scaled(self, q: Float[Tensor, "rows heads queries width"]) -> Float[Tensor, "rows heads queries width"]:
        """Each head has a scale of its own."""
        return q * torch.clamp(self.logit_scale, max=LARGEST_SCALE).exp()

    def project(self, x: Float[Tensor, "rows queries channels"]) -> Projections:
        """Queries and keys of length one [rows, g, N, D] (None where g is 0), values [rows, H, N, D]."""
        cut = self.logit_heads * self.site.head_dim
        q, k, v = self.qkv(x).tensor_split([cut, 2 * cut], dim=-1)
        v = v if self.v_bias is None else v + self.v_bias
        if not self.logit_heads:
            return None, None, self.heads_of(v)
        q = q if self.q_bias is None else q + self.q_bias
        return F.normalize(self.heads_of(q), dim=-1), F.normalize(self.heads_of(k), dim=-1), self.heads_of(v)

    def relative_bias(self) -> Float[Tensor, "1 g queries keys"]:
        """The position bias of the heads with logits."""
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.logit_heads)
        bias = table[self.relative_position_index.view(-1)].view(self.site.queries, self.site.keys, -1)
        return BIAS_RANGE * torch.sigmoid(bias.permute(2, 0, 1).unsqueeze(0))

    def forward(self, x: Float[Tensor, "rows queries channels"], mask: Tensor | None = None) -> Float[Tensor, "rows queries channels"]:
        """Same signature as timm's WindowAttention."""
        bias = masked_bias(self.relative_bias(), mask, x.shape[0]) if self.logit_heads else None
        return self.proj_drop(self.proj(self.mixed(*self.project(x), bias)))


def _check_block(block: Any, name: str) -> None:
    for path, module, kind in ((name, block, SwinTransformerV2Block), (f"{name}.attn", block.attn, WindowAttention)):
        if not is_kind(module, kind):
            raise UnsupportedModel(f"{path} is a {named(module, kind)}; only Swin version 2 blocks are supported")
    if block.dynamic_mask:
        raise UnsupportedModel(f"{name} computes its shift mask per input size; give the model a fixed image size")


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return CosineAttention(original, site)


def forward_pass(model: Any) -> ForwardPass:
    """How a Swin Transformer of version 2 runs block by block."""
    return stage_pass(model, "mlp")


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    return stage_sites(model, "swin_v2", _check_block, None)
