"""Sites of Pyramid Vision Transformers: version 1 (ours) and timm's version 2, whose keys are spatially reduced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModel
from . import pvt
from .attention import MapAttention
from .compat import import_timm
from .feed_forward import check_feed_forward, feed_forward
from .forward import BlockCall, ForwardPass, Step
from .grids import Grid, check_not_empty, convolved, image_size_of
from .kinds import has_affine_norm, is_kind, named
from .reduced_attention import PyramidAttention
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models import pvt_v2  # noqa: E402  (timm must be imported through the guard)

KINDS = (pvt.PyramidVisionTransformer, pvt_v2.PyramidVisionTransformerV2)
NAMES = ("vitfrost_pvt_*", "pvt_v2_*")


def matches(model: nn.Module) -> bool:
    """True for PVT version 1 and timm's version 2, "linear" attention included."""
    return is_kind(model, *KINDS)


def _check_block(block: Any, name: str) -> None:
    if not is_kind(block, pvt.Block, pvt_v2.Block) or not is_kind(block.attn, pvt_v2.Attention):
        shown = f"{named(block, pvt.Block, pvt_v2.Block)} with {named(block.attn, pvt_v2.Attention)}"
        raise UnsupportedModel(f"{name} is a {shown}; only PVT's own blocks are supported")
    if isinstance(block, pvt.Block):
        check_feed_forward(block.mlp, f"{name}.mlp")
    elif not is_kind(block.mlp, pvt_v2.MlpWithDepthwiseConv):
        raise UnsupportedModel(
            f"{name}.mlp is a {named(block.mlp, pvt_v2.MlpWithDepthwiseConv)}; only PVT v2's own feed-forward block is supported"
        )


def _key_grid(attn: Any, grid: Grid) -> Grid:
    """The grid of the keys: convolved with a stride, or pooled to a fixed size and convolved with 1 x 1."""
    if attn.sr is None:
        return grid
    pooled = grid if attn.pool is None else (attn.pool.output_size, attn.pool.output_size)
    return convolved(attn.sr, pooled)


def _attention(block: Any, name: str, index: int, grid: Grid, prefix: int) -> tuple[AttentionSite, list[LinearSite]]:
    attn, key_grid = block.attn, _key_grid(block.attn, grid)
    queries, keys = grid[0] * grid[1] + prefix, key_grid[0] * key_grid[1] + prefix
    site = AttentionSite(
        f"{name}.attn", index, attn.num_heads, attn.head_dim, attn.dim, queries, keys, prefix, grid,
        key_grid=None if attn.sr is None else key_grid,
    )  # fmt: skip
    # norm1 is read by the queries and by the keys; the keys' own norm by one layer, unless an activation comes between.
    linears, own_norm = [LinearSite(f"{site.name}.q", "query", queries)], None
    if attn.sr is not None:
        linears.append(LinearSite(f"{site.name}.sr", "spatial_reduction", keys))
        own_norm = f"{site.name}.norm" if attn.pool is None and has_affine_norm(attn.norm) else None
    return site, [*linears, LinearSite(f"{site.name}.kv", "key_value", keys, own_norm), LinearSite(f"{site.name}.proj", "proj", queries)]


def _feed_forward(block: Any, name: str, index: int, tokens: int) -> tuple[FeedForwardSite, list[LinearSite]]:
    norm = f"{name}.norm2" if has_affine_norm(block.norm2) else None
    if not hasattr(block.mlp, "dwconv"):
        return feed_forward(block.mlp, f"{name}.mlp", index, tokens, norm)
    site = FeedForwardSite(f"{name}.mlp", index, block.mlp.fc1.in_features, block.mlp.fc1.out_features, tokens)
    layers = (LinearSite(f"{site.name}.fc1", "fc1", tokens, norm), LinearSite(f"{site.name}.dwconv", "convolution", tokens))
    return site, [*layers, LinearSite(f"{site.name}.fc2", "fc2", tokens)]


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return PyramidAttention(original, site)


def _stages(model: Any) -> Iterator[tuple[int, Any, str, Grid]]:
    """Number, stage, name of its patch embedding, and patch grid."""
    grid = image_size_of(model)
    for number, stage in enumerate(model.stages):
        embedding = f"stages.{number}." + ("patch_embed" if _is_first_version(model) else "downsample")
        if number == 0 and not _is_first_version(model):
            embedding = "patch_embed"
        grid = convolved(model.get_submodule(f"{embedding}.proj"), grid)
        yield number, stage, embedding, grid


def _is_first_version(model: nn.Module) -> bool:
    return isinstance(model, pvt.PyramidVisionTransformer)


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """[B, C, H, W] of a stage's tokens, as version 2 makes it."""
    return tokens.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2).contiguous()


def _into_stage(model: Any, number: int, stage: Any, grid: Grid) -> Step:
    """What leads from the output of a stage's last block, on patches of `grid`, to the tokens of the next stage, `stage`."""

    def first_version(tokens: Tensor) -> Tensor:
        patches = tokens.transpose(1, 2).unflatten(2, grid)
        embedded: Tensor = stage.embed(patches, model.cls_token if stage.prefix else None)[0]
        return embedded

    def second_version(tokens: Tensor) -> Tensor:
        merged: Tensor = stage.downsample(_as_map(model.stages[number - 1].norm(tokens), grid))
        return merged.reshape(len(merged), -1, merged.shape[-1])

    return first_version if _is_first_version(model) else second_version


def forward_pass(model: Any) -> ForwardPass:
    """How a Pyramid Vision Transformer runs block by block; every block is given the patch grid too."""
    blocks: list[BlockCall] = []
    before: Grid = (0, 0)
    for number, stage, _, grid in _stages(model):
        entry = _into_stage(model, number, stage, before) if number else None
        blocks += [BlockCall(f"stages.{number}.blocks.{place}", None if place else entry, (grid,)) for place in range(len(stage.blocks))]
        before = grid

    def stem(pixels: Tensor) -> Tensor:
        embedded: Tensor = model.stages[0].embed(pixels)[0] if _is_first_version(model) else model.patch_embed(pixels).flatten(1, 2)
        return embedded

    def head(tokens: Tensor) -> Tensor:
        if _is_first_version(model):
            logits: Tensor = model.head(model.norm(tokens)[:, 0])
        else:
            logits = model.forward_head(_as_map(model.stages[-1].norm(tokens), before))
        return logits

    return ForwardPass(image_size_of(model), stem, tuple(blocks), head, tokens_channels_first=True)


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites of a Pyramid Vision Transformer.

    Raises UnsupportedModel naming the first part that is not supported, VitfrostError for an image that is too small.
    """
    first_version, image_size = _is_first_version(model), image_size_of(model)
    attention: list[AttentionSite] = []
    feed_forward: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    for stage_index, stage, embedding, grid in _stages(model):
        prefix = stage.prefix if first_version else 0
        linears.append(LinearSite(f"{embedding}.proj", "reduction" if stage_index else "stem", grid[0] * grid[1]))
        for block_index, block in enumerate(stage.blocks):
            name, index = f"stages.{stage_index}.blocks.{block_index}", len(attention)
            _check_block(block, name)
            site, layers = _attention(block, name, index, grid, prefix)
            check_not_empty(site.name, image_size, min(site.queries, site.keys) - prefix)
            block_site, block_layers = _feed_forward(block, name, index, site.queries)
            attention.append(site)
            feed_forward.append(block_site)
            linears += layers + block_layers
    if isinstance(model.head, nn.Linear):
        linears.append(LinearSite("head", "head", 1))
    return ModelSites("pvt" if first_version else "pvt_v2", image_size, tuple(attention), tuple(feed_forward), tuple(linears))
