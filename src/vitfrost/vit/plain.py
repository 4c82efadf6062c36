"""timm's plain Vision Transformers: `vit_*`, `deit_*`, distilled ones, registers, any resolution."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModel, VitfrostError
from .attention import FusedAttention, MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.layers import Attention, Mlp  # noqa: E402  (timm must be imported through the guard)
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

KINDS = (VisionTransformerDistilled, VisionTransformer)
NAMES = ("vit_*", "deit_*")


def matches(model: nn.Module) -> bool:
    """True for timm's VisionTransformer and its distilled form, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


def check_feed_forward(mlp: Any, name: str) -> None:
    """Raise UnsupportedModel for gated or otherwise unusual feed-forward blocks."""
    if not is_kind(mlp, Mlp) or not isinstance(mlp.fc1, nn.Linear) or not isinstance(mlp.norm, nn.Identity):
        raise UnsupportedModel(f"{name} is a {named(mlp, Mlp)} feed-forward block; only fc1-activation-fc2 is supported")


def _check_block(block: Any, name: str) -> None:
    if not is_kind(block, Block):
        raise UnsupportedModel(f"{name} is a {named(block, Block)}; only the pre-norm Block is supported")
    if not is_kind(block.attn, Attention):
        raise UnsupportedModel(f"{name}.attn is {named(block.attn, Attention)}; only plain multi-head self-attention is supported")
    if getattr(block.attn, "gate", None) is not None:
        raise UnsupportedModel(f"{name}.attn is gated attention, which is not supported")
    check_feed_forward(block.mlp, f"{name}.mlp")


def attention_with_heads_of(width: object) -> type[Attention]:
    """What timm's ViT takes as `attn_layer` for heads of `width` channels; by itself it ties them to the model's width.

    Raises VitfrostError for a width that is no whole number of channels.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise VitfrostError(f"attn_head_dim {width!r} is out of range; give the channels of a head, at least 1")
    channels: int = width

    class AttentionWithHeads(Attention):
        def __new__(cls, dim: int, **options: Any) -> Any:  # timm wants a class; what it makes is timm's own attention
            return Attention(dim, attn_head_dim=channels, **options)

    return AttentionWithHeads


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return FusedAttention(original, site, scale_queries_first=False)


def forward_pass(model: Any) -> ForwardPass:
    """How a plain ViT runs block by block."""
    return ForwardPass(
        image_size=tuple(model.patch_embed.img_size),
        stem=lambda pixels: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels)))),
        blocks=tuple(BlockCall(f"blocks.{index}") for index in range(len(model.blocks))),
        head=lambda stream: model.forward_head(model.norm(stream)),
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a plain ViT.

    Raises UnsupportedModel naming the first part that is not supported.
    """
    grid = tuple(model.patch_embed.grid_size or ())
    if len(grid) != 2:
        raise UnsupportedModel("the patch embedding has no fixed grid; give the model a fixed image size")
    if not isinstance(model.patch_embed.proj, nn.Conv2d):
        raise UnsupportedModel(f"the patch embedding is a {type(model.patch_embed.proj).__name__}; a convolution is supported")
    prefix = model.num_prefix_tokens
    tokens = grid[0] * grid[1] + prefix
    attention: list[AttentionSite] = []
    feed_forward: list[FeedForwardSite] = []
    linears = [LinearSite("patch_embed.proj", "stem", grid[0] * grid[1])]
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        _check_block(block, name)
        attn = block.attn
        attention.append(
            AttentionSite(
                f"{name}.attn", index, attn.num_heads, attn.head_dim, attn.qkv.in_features,
                tokens, tokens, prefix, grid,
            )
        )  # fmt: skip
        feed_forward.append(FeedForwardSite(f"{name}.mlp", index, block.mlp.fc1.in_features, block.mlp.fc1.out_features, tokens))
        linears += [
            LinearSite(f"{name}.attn.qkv", "qkv", tokens, f"{name}.norm1" if has_affine_norm(block.norm1) else None),
            LinearSite(f"{name}.attn.proj", "proj", tokens),
            LinearSite(f"{name}.mlp.fc1", "fc1", tokens, f"{name}.norm2" if has_affine_norm(block.norm2) else None),
            LinearSite(f"{name}.mlp.fc2", "fc2", tokens),
        ]
    linears += [LinearSite(name, "head", 1) for name in ("head", "head_dist") if isinstance(getattr(model, name, None), nn.Linear)]
    return ModelSites("vit", tuple(model.patch_embed.img_size), tuple(attention), tuple(feed_forward), tuple(linears))
