"""timm's ViTs with a relative position bias over the whole image: BEiT and BEiTv2, `vit_relpos_*`, `vit_srelpos_*`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .global_attention import GlobalAttention
from .kinds import is_kind
from .sites import AttentionSite, ModelSites
from .stacks import Stack, after_attention, stack_sites

import_timm()
from timm.models.beit import Attention, Beit, Block  # noqa: E402  (timm must be imported through the guard)
from timm.models.vision_transformer_relpos import (  # noqa: E402
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)

KINDS = (Beit, VisionTransformerRelPos)
NAMES = ("beit*", "vit_relpos_*", "vit_srelpos_*")
OWN_ATTENTION_IN_ONNX = True  # torch takes it apart into heads that lie in another order, and cannot put them side by side
STACK = Stack("relative", (Block, RelPosBlock), (ResPostRelPosBlock,), (Attention, RelPosAttention), "the blocks of BEiT and vit_relpos_*")


def matches(model: nn.Module) -> bool:
    """True for timm's Beit and VisionTransformerRelPos, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return GlobalAttention(original, site)


@torch.no_grad()
def _shared_bias(model: Any) -> Tensor | None:
    """The position bias [1, heads, tokens, tokens] that all blocks are given; None where each has its own."""
    if isinstance(model, Beit):
        return None if model.rel_pos_bias is None else model.rel_pos_bias()
    return None if model.shared_rel_pos is None else model.shared_rel_pos.get_bias()


def _with_prefix(model: Any, patches: Tensor) -> Tensor:
    if model.cls_token is not None:
        patches = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1)
    if isinstance(model, Beit):
        patches = model.pos_drop(patches if model.pos_embed is None else patches + model.pos_embed)
    return patches


def forward_pass(model: Any) -> ForwardPass:
    """How such a model runs block by block; every block is given the shared bias too."""
    shared = _shared_bias(model)
    return ForwardPass(
        image_size=tuple(model.patch_embed.img_size),
        stem=lambda pixels: _with_prefix(model, model.patch_embed(pixels)),
        blocks=tuple(BlockCall(f"blocks.{index}", None, (shared,)) for index in range(len(model.blocks))),
        head=lambda stream: model.forward_head(model.norm(stream)),
        after_attention=after_attention(model, STACK),
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    return stack_sites(model, STACK, tuple(model.patch_embed.img_size), model.num_prefix_tokens)
