"""timm's CoAtNets and CoAtNeXts: stages of convolutions, then stages of attention over all positions, with channels first.

All convolutions but those of 1 x 1 in attention and feed-forward blocks stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .kept import convolutions
from .kinds import has_affine_norm, is_kind, named
from .maxvit import PartitionAttention, blocks_of, size_of
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.layers import ConvMlp  # noqa: E402  (timm must be imported through the guard)
from timm.models.maxxvit import Attention2d, ConvNeXtBlock, MaxxVit, MbConvBlock, TransformerBlock2d  # noqa: E402

KINDS = (MaxxVit,)
NAMES = ("coatnet_*", "coatnext_*")


def matches(model: nn.Module) -> bool:
    """True for timm's MaxxVit where blocks attend to all positions, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS) and any(isinstance(block, TransformerBlock2d) for _, block in blocks_of(model))


class ChannelsFirstAttention(PartitionAttention):
    """timm's Attention2d: one map over all positions, a position bias per head, projections that are convolutions of 1 x 1."""

    def rows_read(self, read: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows queries channels"]:
        return read.flatten(2).transpose(1, 2)

    def forward(self, x: Float[Tensor, "rows channels height width"], shared_rel_pos: Tensor | None = None) -> Tensor:
        """Same signature as timm's Attention2d."""
        parts = self.cut(self.qkv(x).flatten(2).transpose(1, 2))
        mixed = self.mixed(*parts, self.relative_bias() if self.logit_heads else None)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).unflatten(2, x.shape[2:])))


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return ChannelsFirstAttention(original, site)


def _through(convolved: list[Any], stream: Tensor) -> Tensor:
    """The stream behind blocks of convolutions."""
    for block in convolved:
        stream = block(stream)
    return stream


def forward_pass(model: Any) -> ForwardPass:
    """How a CoAtNet runs: its blocks are those that attend; the others, before, between and behind them, are ways from one to the next."""
    names: list[str] = []
    others: list[list[Any]] = [[]]  # before each block that attends, and behind the last
    for name, block in blocks_of(model):
        if isinstance(block, TransformerBlock2d):
            names.append(name)
            others.append([])
        else:
            others[-1].append(block)
    first, *between, last = others
    return ForwardPass(
        image_size=size_of(model),
        stem=lambda pixels: _through(first, model.stem(pixels)),
        blocks=tuple(BlockCall(name, partial(_through, way) if way else None) for name, way in zip(names, [[], *between], strict=True)),
        head=lambda stream: model.forward_head(model.norm(_through(last, stream))),
        channels_first=True,
    )


def _check_block(block: Any, name: str) -> None:
    kinds = (TransformerBlock2d, MbConvBlock, ConvNeXtBlock)
    if not is_kind(block, *kinds):
        raise UnsupportedModel(f"{name} is a {named(block, *kinds)}; only convolutions and attention over all positions are supported")
    if not isinstance(block, TransformerBlock2d):
        return
    if not is_kind(block.attn, Attention2d):
        raise UnsupportedModel(f"{name}.attn is a {named(block.attn, Attention2d)}; only attention with channels first is supported")
    if not is_kind(block.mlp, ConvMlp) or not isinstance(block.mlp.norm, nn.Identity):
        raise UnsupportedModel(f"{name}.mlp is a {named(block.mlp, ConvMlp)}; only fc1-activation-fc2 of 1 x 1 convolutions is supported")


def _norm_before(block: Any, name: str) -> str | None:
    """The LayerNorm before attention, if it is one. Pooling behind it gives scaled and shifted channels scaled and shifted alike."""
    pooled = isinstance(block.norm1, nn.Sequential)
    if pooled and not isinstance(block.norm1.down.expand, nn.Identity):
        return None
    norm = block.norm1.norm if pooled else block.norm1
    return f"{name}.norm1{'.norm' if pooled else ''}" if has_affine_norm(norm) else None


def _block_sites(block: Any, name: str, index: int, grid: tuple[int, int]) -> tuple[AttentionSite, FeedForwardSite, list[LinearSite]]:
    attn, fc1, tokens = block.attn, block.mlp.fc1, grid[0] * grid[1]
    return (
        AttentionSite(f"{name}.attn", index, attn.num_heads, attn.dim_head, attn.qkv.in_channels, tokens, tokens, 0, grid),
        FeedForwardSite(f"{name}.mlp", index, fc1.in_channels, fc1.out_channels, tokens),
        [
            LinearSite(f"{name}.attn.qkv", "qkv", tokens, _norm_before(block, name)),
            LinearSite(f"{name}.attn.proj", "proj", tokens),
            LinearSite(f"{name}.mlp.fc1", "fc1", tokens, f"{name}.norm2" if has_affine_norm(block.norm2) else None),
            LinearSite(f"{name}.mlp.fc2", "fc2", tokens),
        ],
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported, and for images whose
    sides the stages cannot halve."""
    for name, block in blocks_of(model):
        _check_block(block, name)
    size = size_of(model)
    try:
        kept = convolutions(model, "", size)
    except RuntimeError as error:
        raise UnsupportedModel(f"the stages of this model do not fit images of {size[0]} x {size[1]} px; give multiples of 32") from error
    attention: list[AttentionSite] = []
    forward: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    grid = (size[0] // 2, size[1] // 2)
    for number, stage in enumerate(model.stages):
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        for place, block in enumerate(stage.blocks):
            if isinstance(block, TransformerBlock2d):
                site, mlp, layers = _block_sites(block, f"stages.{number}.blocks.{place}", len(attention), grid)
                attention.append(site)
                forward.append(mlp)
                linears += layers
    own = {layer.name for layer in linears}
    linears += [LinearSite(f"head.{path}", "head", 1) for path, layer in model.head.named_modules() if isinstance(layer, nn.Linear)]
    return ModelSites(
        "coatnet", size, tuple(attention), tuple(forward), tuple(linears), tuple(layer for layer in kept if layer.name not in own)
    )
