"""timm's Swin Transformers: windowed attention, shifted windows, relative position bias."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import FusedAttention, MapAttention
from .compat import import_timm
from .forward import BlockCall, ForwardPass
from .kinds import has_affine_norm, is_kind, named
from .plain import check_feed_forward
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models.swin_transformer import (  # noqa: E402  (timm must be imported through the guard)
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)

KINDS = (SwinTransformer,)
NAMES = ("swin_*",)


def matches(model: nn.Module) -> bool:
    """True for timm's SwinTransformer (version 1), and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


def allowed_pairs(block: Any) -> Bool[Tensor, "windows queries keys"] | None:
    """Which (query, key) pairs of each window see each other; None where all do (no shift)."""
    mask = block.attn_mask
    return None if mask is None else mask == 0


def _check_block(block: Any, name: str) -> None:
    for path, module, kind in ((name, block, SwinTransformerBlock), (f"{name}.attn", block.attn, WindowAttention)):
        if not is_kind(module, kind):
            raise UnsupportedModel(f"{path} is a {named(module, kind)}; only Swin version 1 blocks are supported")
    if block.dynamic_mask:
        raise UnsupportedModel(f"{name} computes its shift mask per input size; give the model a fixed image size")
    check_feed_forward(block.mlp, f"{name}.mlp")


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return FusedAttention(original, site, scale_queries_first=True)


def forward_pass(model: Any) -> ForwardPass:
    """How a Swin Transformer runs block by block; patches are merged before the first block of a stage."""
    return ForwardPass(
        image_size=tuple(model.patch_embed.img_size),
        stem=lambda pixels: model.layers[0].downsample(model.patch_embed(pixels)),
        blocks=tuple(
            BlockCall(f"layers.{number}.blocks.{place}", stage.downsample if number and not place else None)
            for number, stage in enumerate(model.layers)
            for place in range(len(stage.blocks))
        ),
        head=lambda stream: model.forward_head(model.norm(stream)),
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a Swin Transformer.

    Raises UnsupportedModel naming the first part that is not supported.
    """
    image_size = tuple(model.patch_embed.img_size)
    stem = tuple(model.patch_embed.grid_size)
    attention: list[AttentionSite] = []
    feed_forward: list[FeedForwardSite] = []
    linears = [LinearSite("patch_embed.proj", "stem", stem[0] * stem[1])]
    for stage_index, stage in enumerate(model.layers):
        if isinstance(stage.downsample, PatchMerging):
            name = f"layers.{stage_index}.downsample"
            height, width = stage.output_resolution
            norm = f"{name}.norm" if has_affine_norm(stage.downsample.norm) else None
            linears.append(LinearSite(f"{name}.reduction", "reduction", height * width, norm))
        for block_index, block in enumerate(stage.blocks):
            name = f"layers.{stage_index}.blocks.{block_index}"
            _check_block(block, name)
            height, width = block.input_resolution
            windows_high = math.ceil(height / block.window_size[0])
            windows_wide = math.ceil(width / block.window_size[1])
            padded = (windows_high * block.window_size[0], windows_wide * block.window_size[1]) != (height, width)
            windows, area, tokens = windows_high * windows_wide, block.attn.window_area, height * width
            head_dim = block.attn.qkv.out_features // (3 * block.attn.num_heads)
            attention.append(
                AttentionSite(
                    f"{name}.attn", len(attention), block.attn.num_heads, head_dim, block.attn.qkv.in_features,
                    area, area, 0, tuple(block.window_size), windows, tuple(block.shift_size), block.attn_mask is not None,
                )
            )  # fmt: skip
            feed_forward.append(
                FeedForwardSite(f"{name}.mlp", len(feed_forward), block.mlp.fc1.in_features, block.mlp.fc1.out_features, tokens)
            )
            # Zero padding happens between norm1 and qkv, so scales moved across it would change the padded tokens.
            norm1 = f"{name}.norm1" if has_affine_norm(block.norm1) and not padded else None
            linears += [
                LinearSite(f"{name}.attn.qkv", "qkv", windows * area, norm1),
                LinearSite(f"{name}.attn.proj", "proj", windows * area),
                LinearSite(f"{name}.mlp.fc1", "fc1", tokens, f"{name}.norm2" if has_affine_norm(block.norm2) else None),
                LinearSite(f"{name}.mlp.fc2", "fc2", tokens),
            ]
    if isinstance(model.head.fc, nn.Linear):
        linears.append(LinearSite("head.fc", "head", 1))
    return ModelSites("swin", image_size, tuple(attention), tuple(feed_forward), tuple(linears))
