"""timm's Swin Transformers: windowed attention, shifted windows, relative position bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import FusedAttention, MapAttention
from .compat import import_timm
from .feed_forward import feed_forward
from .forward import BlockCall, ForwardPass
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models.swin_transformer import (  # noqa: E402  (timm must be imported through the guard)
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)

Check = Callable[[Any, str], None]
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


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return FusedAttention(original, site, scale_queries_first=True)


def forward_pass(model: Any) -> ForwardPass:
    """How a Swin Transformer runs block by block; patches are merged before the first block of a stage."""
    return stage_pass(model, "norm2")


def stage_pass(model: Any, after_attention: str) -> ForwardPass:
    """How stages of windowed blocks run."""
    return ForwardPass(
        image_size=tuple(model.patch_embed.img_size),
        stem=lambda pixels: model.layers[0].downsample(model.patch_embed(pixels)),
        blocks=tuple(
            BlockCall(f"layers.{number}.blocks.{place}", stage.downsample if number and not place else None)
            for number, stage in enumerate(model.layers)
            for place in range(len(stage.blocks))
        ),
        head=lambda stream: model.forward_head(model.norm(stream)),
        after_attention=after_attention,
    )


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a Swin Transformer.

    Raises UnsupportedModel naming the first part that is not supported.
    """
    return stage_sites(model, "swin", _check_block, PatchMerging)


def stage_sites(model: Any, family: str, check_block: Check, merging: type[nn.Module] | None) -> ModelSites:
    """Sites of stages of windowed blocks. `check_block` raises UnsupportedModel for a block of another kind. `merging`: layers that merge
    patches behind a LayerNorm; None where, as in version 2, all norms stand behind their layers.
    """
    stem = tuple(model.patch_embed.grid_size)
    attention: list[AttentionSite] = []
    blocks: list[FeedForwardSite] = []
    linears = [LinearSite("patch_embed.proj", "stem", stem[0] * stem[1])]
    for stage_index, stage in enumerate(model.layers):
        downsample: Any = stage.downsample
        if not isinstance(downsample, nn.Identity):
            name = f"layers.{stage_index}.downsample"
            height, width = stage.output_resolution
            before = merging is not None and is_kind(downsample, merging) and has_affine_norm(downsample.norm)
            linears.append(LinearSite(f"{name}.reduction", "reduction", height * width, f"{name}.norm" if before else None))
        for block_index, block in enumerate(stage.blocks):
            name = f"layers.{stage_index}.blocks.{block_index}"
            check_block(block, name)
            site, padded = _window_site(block, f"{name}.attn", len(attention))
            attention.append(site)
            tokens, rows = block.input_resolution[0] * block.input_resolution[1], site.windows * site.queries
            norms: list[Any] = [getattr(block, each) for each in ("norm1", "norm2")]
            norm1, norm2 = (f"{name}.norm{n}" if merging and has_affine_norm(norm) else None for n, norm in enumerate(norms, 1))
            # Zero padding happens between norm1 and qkv, so scales moved across it would change the padded tokens.
            linears += [
                LinearSite(f"{name}.attn.qkv", "qkv", rows, None if padded else norm1),
                LinearSite(f"{name}.attn.proj", "proj", rows),
            ]
            forward, layers = feed_forward(block.mlp, f"{name}.mlp", len(blocks), tokens, norm2)
            blocks.append(forward)
            linears += layers
    if isinstance(model.head.fc, nn.Linear):
        linears.append(LinearSite("head.fc", "head", 1))
    return ModelSites(family, tuple(model.patch_embed.img_size), tuple(attention), tuple(blocks), tuple(linears))


def _window_site(block: Any, name: str, index: int) -> tuple[AttentionSite, bool]:
    """The site of a block's attention, and whether its windows are padded."""
    (height, width), (high, wide) = block.input_resolution, block.window_size
    counts = math.ceil(height / high), math.ceil(width / wide)
    attn, area = block.attn, high * wide
    head_dim = attn.qkv.out_features // (3 * attn.num_heads)
    site = AttentionSite(
        name, index, attn.num_heads, head_dim, attn.qkv.in_features, area, area, 0, tuple(block.window_size),
        counts[0] * counts[1], tuple(block.shift_size), block.attn_mask is not None,
    )  # fmt: skip
    return site, (counts[0] * high, counts[1] * wide) != (height, width)
