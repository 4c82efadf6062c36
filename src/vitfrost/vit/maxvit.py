"""timm's MaxViTs: convolutions, attention in windows, attention in grids (of positions that lie apart), stage after stage.

Convolutions stay as they are. The windows of a grid are counted as windows are: each is a small grid of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import MapAttention, Projections
from .compat import import_timm
from .feed_forward import feed_forward
from .forward import BlockCall, ForwardPass, through_convolution
from .head_rows import with_rows
from .kept import convolutions
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models.maxxvit import AttentionCl, MaxxVit, MaxxVitBlock, PartitionAttentionCl  # noqa: E402  (see import_timm)

KINDS = (MaxxVit,)
NAMES = ("maxvit_*", "maxxvit_*")
OWN_ATTENTION_IN_ONNX = True  # as in `relative`


def matches(model: nn.Module) -> bool:
    """True for timm's MaxxVit, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


class PartitionAttention(MapAttention):
    """timm's AttentionCl: windows [rows, height, width, channels], a position bias per head; queries, keys and values may be stacked head
    by head."""

    qkv: Any
    rel_pos: Any

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.qkv, self.rel_pos, self.head_by_head = original.qkv, original.rel_pos, original.head_first

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        heads, width = self.site.heads, self.site.head_dim
        rows = torch.arange(3 * heads * width, device=self.qkv.weight.device)
        q, k, v = rows.view(heads, 3, width).unbind(1) if self.head_by_head else rows.view(3, heads, width).unbind(0)
        kept, all_of_them = list(order[:logit_heads]), list(order)
        self.qkv = with_rows(self.qkv, torch.cat([part.flatten() for part in (q[kept], k[kept], v[all_of_them])]))
        self.head_by_head = False
        if not logit_heads:
            self.rel_pos = None

    @property
    def has_relative_bias(self) -> bool:
        return self.rel_pos is not None

    def cut(self, stacked: Float[Tensor, "rows tokens stacked"]) -> Projections:
        """Queries and keys [rows, g, N, D] (None where g is 0), values [rows, H, N, D] of what `qkv` makes."""
        if self.head_by_head:
            q, k, v = self.heads_of_three(stacked).chunk(3, dim=-1)
            return q, k, v
        cut = self.logit_heads * self.site.head_dim
        q, k, v = stacked.tensor_split([cut, 2 * cut], dim=-1)
        if not self.logit_heads:
            return None, None, self.heads_of(v)
        return self.heads_of(q), self.heads_of(k), self.heads_of(v)

    def heads_of_three(self, stacked: Float[Tensor, "rows tokens stacked"]) -> Float[Tensor, "rows heads tokens three_widths"]:
        """Channels cut into heads of queries, keys and values."""
        return stacked.unflatten(-1, (self.site.heads, 3 * self.site.head_dim)).transpose(1, 2)

    def relative_bias(self) -> Float[Tensor, "1 g tokens tokens"] | None:
        """The position bias of the heads with logits."""
        if self.rel_pos is None:
            return None
        bias = self.rel_pos.get_bias()
        bias = bias if bias.ndim == 4 else bias.unsqueeze(0)
        return bias if self.logit_heads == self.site.heads and not self.apart else bias[:, list(self.order[: self.logit_heads])]

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Same signature as timm's AttentionCl."""
        mixed = self.mixed(*self.cut(self.qkv(x.flatten(1, -2))), self.relative_bias() if self.logit_heads else None)
        return self.proj_drop(self.proj(mixed)).view(*x.shape[:-1], -1)


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return PartitionAttention(original, site)


def blocks_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The blocks of all stages, by name."""
    for number, stage in enumerate(model.stages):
        for place, block in enumerate(stage.blocks):
            yield f"stages.{number}.blocks.{place}", block


def _parts(block: Any) -> list[str]:
    return [part for part in ("attn_block", "attn_grid") if getattr(block, part) is not None]


def forward_pass(model: Any) -> ForwardPass:
    """How a MaxViT runs: its blocks are the single attentions with the feed-forward block behind each; convolutions lie between."""
    calls: list[BlockCall] = []
    first: Callable[[Tensor], Tensor] | None = None
    for name, block in blocks_of(model):
        enter = through_convolution(block.conv, channels_last=first is not None)
        if first is None:
            first = enter
        for number, part in enumerate(_parts(block)):
            calls.append(BlockCall(f"{name}.{part}", enter if calls and not number else None))
    assert first is not None
    into = first
    return ForwardPass(
        image_size=size_of(model),
        stem=lambda pixels: into(model.stem(pixels)),
        blocks=tuple(calls),
        head=lambda stream: model.forward_head(model.norm(stream.permute(0, 3, 1, 2))),
        tokens_channels_first=True,
    )


def size_of(model: Any) -> tuple[int, int]:
    """Height and width in pixels that windows and position biases were made for. Raises UnsupportedModel."""
    if getattr(model, "img_size", None) is None:
        raise UnsupportedModel(f"this {type(model).__name__} does not say for which image size it was built; pip install -U timm")
    height, width = model.img_size
    return height, width


def _check_block(block: Any, name: str) -> None:
    if not is_kind(block, MaxxVitBlock):
        raise UnsupportedModel(f"{name} is a {named(block, MaxxVitBlock)}; only MaxViT's blocks are supported")
    for part in _parts(block):
        layer = getattr(block, part)
        for path, module, kind in ((f"{name}.{part}", layer, PartitionAttentionCl), (f"{name}.{part}.attn", layer.attn, AttentionCl)):
            if not is_kind(module, kind):
                raise UnsupportedModel(f"{path} is a {named(module, kind)}; only attention with channels last is supported")


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    for name, block in blocks_of(model):
        _check_block(block, name)
    size = size_of(model)
    kept = convolutions(model, "", size)
    positions = {site.name: site.tokens for site in kept}
    attention: list[AttentionSite] = []
    blocks: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    for name, block in blocks_of(model):
        last = [path for path, layer in block.conv.named_modules() if isinstance(layer, nn.Conv2d)][-1]
        tokens = positions[f"{name}.conv.{last}"]
        for part in _parts(block):
            layer, where = getattr(block, part), f"{name}.{part}"
            attn, grid = layer.attn, tuple(layer.partition_size)
            area = grid[0] * grid[1]
            if grid[0] != grid[1] and isqrt(area) ** 2 == area:  # statistics take such a window for a square
                raise UnsupportedModel(f"{where} has windows of {grid[0]} x {grid[1]}; give an image size closer to a square")
            site = AttentionSite(
                f"{where}.attn", len(attention), attn.num_heads, attn.dim_head, attn.qkv.in_features, area, area, 0, grid, tokens // area
            )
            attention.append(site)
            norms = [f"{where}.{norm}" if has_affine_norm(getattr(layer, norm)) else None for norm in ("norm1", "norm2")]
            forward, layers = feed_forward(layer.mlp, f"{where}.mlp", len(blocks), tokens, norms[1])
            blocks.append(forward)
            linears += [LinearSite(f"{site.name}.qkv", "qkv", tokens, norms[0]), LinearSite(f"{site.name}.proj", "proj", tokens), *layers]
    heads = [f"head.{path}" for path, layer in model.head.named_modules() if isinstance(layer, nn.Linear)]
    linears += [LinearSite(head, "head", 1) for head in heads]
    return ModelSites("maxvit", size, tuple(attention), tuple(blocks), tuple(linears), kept)
