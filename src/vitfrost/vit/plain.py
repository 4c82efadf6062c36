"""timm's plain Vision Transformers: `vit_*`, `deit_*`, distilled ones, registers, any resolution."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModel, VitfrostError
from .attention import FusedAttention, MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .kinds import is_kind
from .sites import AttentionSite, ModelSites
from .stacks import Stack, after_attention, check_block, stack_sites

import_timm()
from timm.layers import Attention, AttentionPoolLatent  # noqa: E402  (timm must be imported through the guard)
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer  # noqa: E402

KINDS = (VisionTransformerDistilled, VisionTransformer)
NAMES = ("vit_*", "deit_*")
STACK = Stack("vit", (Block,), (ResPostBlock,), (Attention,), "plain ViTs' blocks of attention and feed-forward, one after the other,")


def matches(model: nn.Module) -> bool:
    """True for timm's VisionTransformer and its distilled form, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


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
        after_attention=after_attention(model, STACK),
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a plain ViT.

    Raises UnsupportedModel naming the first part that is not supported.
    """
    for index, block in enumerate(model.blocks):
        check_block(block, f"blocks.{index}", STACK)
        if getattr(block.attn, "gate", None) is not None:
            raise UnsupportedModel(f"blocks.{index}.attn is gated attention, which is not supported")
    if not isinstance(model.attn_pool, AttentionPoolLatent | None):
        raise UnsupportedModel(f"attn_pool is a {type(model.attn_pool).__name__}; only attention with latent queries is supported")
    return stack_sites(model, STACK, tuple(model.patch_embed.img_size), model.num_prefix_tokens)
