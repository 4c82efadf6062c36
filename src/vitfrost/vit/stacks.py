"""Sites of models that are one stack of blocks behind a patch embedding: attention over all tokens, then a feed-forward block."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ..errors import UnsupportedModel
from .feed_forward import feed_forward
from .global_attention import attention_linears
from .kept import kept_layers
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites


class Stack(NamedTuple):
    """What such a family is made of: kinds of blocks (with the norm before a layer, and behind it), and of attention; `blocks` says in a
    message which they are. `root`: the name of the module that has embedding and blocks, with a dot."""

    family: str
    pre_norm: tuple[type[nn.Module], ...]
    post_norm: tuple[type[nn.Module], ...]
    attention: tuple[type[nn.Module], ...]
    blocks: str
    root: str = ""


def check_block(block: Any, name: str, stack: Stack) -> None:
    """Raise UnsupportedModel for a block or an attention of another kind."""
    kinds = (*stack.pre_norm, *stack.post_norm)
    if not is_kind(block, *kinds):
        raise UnsupportedModel(f"{name} is a {named(block, *kinds)}; only {stack.blocks} are supported")
    if not is_kind(block.attn, *stack.attention):
        raise UnsupportedModel(f"{name}.attn is {named(block.attn, *stack.attention)}; only multi-head self-attention is supported")
    if getattr(block.attn, "num_kv_groups", 1) > 1:
        raise UnsupportedModel(f"{name}.attn has fewer heads of keys than of queries (grouped-query attention), which is not supported")


def after_attention(model: Any, stack: Stack) -> str:
    """The module of a block that reads the stream right after attention: the second norm, or, where norms come behind, the next layer."""
    blocks = model.get_submodule(stack.root.rstrip(".")).blocks
    return "mlp" if len(blocks) and is_kind(blocks[0], *stack.post_norm) else "norm2"


def stack_sites(model: Any, stack: Stack, image_size: tuple[int, int], prefix: int, grid: tuple[int, int] | None = None) -> ModelSites:
    """Attention, feed-forward and linear sites. `prefix`: tokens before the patches. `grid`: of the patches, else the embedding's own.

    Raises UnsupportedModel naming the first part that is not supported.
    """
    root = model.get_submodule(stack.root.rstrip("."))
    grid = tuple(root.patch_embed.grid_size or ()) if grid is None else grid  # type: ignore[assignment]
    if grid is None or len(grid) != 2:
        raise UnsupportedModel("the patch embedding has no fixed grid; give the model a fixed image size")
    patch = getattr(root.patch_embed, "patch_size", None) or (1, 1)
    if patch[0] != patch[1]:  # statistics know of a grid that it has the image's proportions
        raise UnsupportedModel(f"the patches are of {patch[0]} x {patch[1]} px; only square ones are supported")
    tokens = grid[0] * grid[1] + prefix
    attention: list[AttentionSite] = []
    forward: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    if isinstance(root.patch_embed.proj, nn.Conv2d):
        linears.append(LinearSite(f"{stack.root}patch_embed.proj", "stem", grid[0] * grid[1]))
    for index, block in enumerate(root.blocks):
        name = f"{stack.root}blocks.{index}"
        check_block(block, name, stack)
        before = is_kind(block, *stack.pre_norm)
        norms = [f"{name}.{each}" if before and has_affine_norm(getattr(block, each)) else None for each in ("norm1", "norm2")]
        attn = block.attn
        width, heads = attn.proj.in_features // attn.num_heads, attn.num_heads
        attention.append(AttentionSite(f"{name}.attn", index, heads, width, attn.proj.out_features, tokens, tokens, prefix, grid))
        site, layers = feed_forward(block.mlp, f"{name}.mlp", index, tokens, norms[1])
        forward.append(site)
        linears += [*attention_linears(attn, f"{name}.attn", tokens, norms[0]), *layers]
    linears += [LinearSite(name, "head", 1) for name in ("head", "head_dist") if isinstance(getattr(model, name, None), nn.Linear)]
    return ModelSites(stack.family, image_size, tuple(attention), tuple(forward), tuple(linears), kept_layers(root, stack.root, tokens))
