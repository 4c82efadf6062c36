"""timm's Next-ViTs: convolution blocks, and transformer blocks that attend with three quarters of their channels and convolve the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModel
from .attention import MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .grids import Grid, check_not_empty, convolved, image_size_of
from .kinds import is_kind, named
from .reduced_attention import PooledAttention
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.layers import ConvMlp  # noqa: E402  (timm must be imported through the guard)
from timm.models.nextvit import EfficientAttention, NextConvBlock, NextTransformerBlock, NextViT  # noqa: E402

KINDS = (NextViT,)
NAMES = ("nextvit_*",)


def matches(model: nn.Module) -> bool:
    """True for timm's NextViT, also with its normalizations merged into the layers after them."""
    return is_kind(model, *KINDS)


def _check_block(block: Any, name: str) -> None:
    if not is_kind(block, NextConvBlock, NextTransformerBlock):
        shown = named(block, NextConvBlock, NextTransformerBlock)
        raise UnsupportedModel(f"{name} is a {shown}; only Next-ViT's convolution and transformer blocks are supported")
    if not is_kind(block.mlp, ConvMlp) or not isinstance(block.mlp.norm, nn.Identity):
        raise UnsupportedModel(f"{name}.mlp is a {named(block.mlp, ConvMlp)}; only fc1-activation-fc2 of 1 x 1 convolutions is supported")
    if isinstance(block, NextTransformerBlock) and not is_kind(block.e_mhsa, EfficientAttention):
        raise UnsupportedModel(f"{name}.e_mhsa is {named(block.e_mhsa, EfficientAttention)}; only Next-ViT's own attention is supported")


def _attention(attn: Any, name: str, index: int, grid: Grid) -> tuple[AttentionSite, list[LinearSite]]:
    """The keys are means of consecutive tokens (rows after rows), which lie on no grid; a rest at the end is left out."""
    queries = grid[0] * grid[1]
    keys = queries if attn.sr is None else queries // attn.N_ratio
    site = AttentionSite(name, index, attn.num_heads, attn.head_dim, attn.dim, queries, keys, 0, grid)
    return site, [
        LinearSite(f"{name}.q", "query", queries),
        LinearSite(f"{name}.k", "key", keys),
        LinearSite(f"{name}.v", "value", keys),
        LinearSite(f"{name}.proj", "proj", queries),
    ]


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return PooledAttention(original, site)


def forward_pass(model: Any) -> ForwardPass:
    """How a Next-ViT runs block by block; its blocks reduce the map themselves, and a projection follows their attention."""
    return ForwardPass(
        image_size=image_size_of(model),
        stem=lambda pixels: model.stem(pixels),
        blocks=tuple(BlockCall(f"stages.{i}.blocks.{j}") for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))),
        head=lambda stream: model.forward_head(model.norm(stream)),
        after_attention="projection",
        channels_first=True,
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a Next-ViT; feed-forward sites tell which kind of block they are in.

    Raises UnsupportedModel naming the first part that is not supported, VitfrostError for an image that is too small.
    """
    image_size = grid = image_size_of(model)
    attention: list[AttentionSite] = []
    feed_forward: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    for index, layer in enumerate(model.stem):
        grid = convolved(layer.conv, grid)
        linears.append(LinearSite(f"stem.{index}.conv", "stem", grid[0] * grid[1]))
    blocks = [(f"stages.{i}.blocks.{j}", block) for i, stage in enumerate(model.stages) for j, block in enumerate(stage.blocks)]
    for name, block in blocks:
        _check_block(block, name)
        if isinstance(block.patch_embed.pool, nn.AvgPool2d):  # 2 x 2, a last odd row or column pooled alone
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        tokens = grid[0] * grid[1]
        if isinstance(block.patch_embed.conv, nn.Conv2d):
            linears.append(LinearSite(f"{name}.patch_embed.conv", "reduction", tokens))
        transformer = isinstance(block, NextTransformerBlock)
        if transformer:
            site, layers = _attention(block.e_mhsa, f"{name}.e_mhsa", len(attention), grid)
            check_not_empty(site.name, image_size, site.keys)
            attention.append(site)
            linears += layers
            if isinstance(block.projection.conv, nn.Conv2d):
                linears.append(LinearSite(f"{name}.projection.conv", "convolution", tokens))
        fc1 = block.mlp.fc1
        feed_forward.append(
            FeedForwardSite(
                f"{name}.mlp", len(feed_forward), fc1.in_channels, fc1.out_channels, tokens, "transformer" if transformer else "convolution"
            )
        )
        linears += [
            LinearSite(f"{name}.mhca.group_conv3x3", "convolution", tokens),
            LinearSite(f"{name}.mhca.projection", "convolution", tokens),
            LinearSite(f"{name}.mlp.fc1", "fc1", tokens),
            LinearSite(f"{name}.mlp.fc2", "fc2", tokens),
        ]
    if isinstance(model.head.fc, nn.Linear):
        linears.append(LinearSite("head.fc", "head", 1))
    return ModelSites("nextvit", image_size, tuple(attention), tuple(feed_forward), tuple(linears))
