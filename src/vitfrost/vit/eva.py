"""timm's `Eva` class: EVA and EVA02, DINOv3, Perception Encoders, ViTs with rotary positions. Rotary or learned positions, registers,
SwiGLU, norms before or behind a layer, attention that pools the tokens."""

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
from timm.layers import AttentionRope  # noqa: E402  (timm must be imported through the guard)
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm  # noqa: E402

KINDS = (Eva,)
NAMES = ("eva*", "vit_*_dinov3", "vit_pe_*")
STACK = Stack("eva", (EvaBlock,), (EvaBlockPostNorm,), (EvaAttention, AttentionRope), "EVA's blocks")


def matches(model: nn.Module) -> bool:
    """True for timm's Eva, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return GlobalAttention(original, site)


@torch.no_grad()
def _rotations(model: Any) -> list[Tensor | None]:
    """Sines and cosines of every block at the model's own image size."""
    count = len(model.blocks)
    if model.rope is None:
        return [None] * count
    fixed = not model.dynamic_img_size and hasattr(model.rope, "feat_shape")
    angles = model.rope.get_embed() if fixed else model.rope.get_embed(shape=model.patch_embed.grid_size)
    return [angles[index] if model.rope_mixed else angles for index in range(count)]


def forward_pass(model: Any) -> ForwardPass:
    """How such a model runs block by block; every block is given the rotations too."""
    return ForwardPass(
        image_size=tuple(model.patch_embed.img_size),
        stem=lambda pixels: model.norm_pre(model._pos_embed(model.patch_embed(pixels))[0]),
        blocks=tuple(BlockCall(f"blocks.{index}", None, (angles,)) for index, angles in enumerate(_rotations(model))),
        head=lambda stream: model.forward_head(model.norm(stream)),
        after_attention=after_attention(model, STACK),
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    return stack_sites(model, STACK, tuple(model.patch_embed.img_size), model.num_prefix_tokens)
