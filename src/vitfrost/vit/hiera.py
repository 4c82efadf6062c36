"""timm's Hieras: attention in windows (mask units), then over the whole map; the first block of a stage pools its queries by maximum.

timm keeps tokens in an order in which pooling and windows are slices: the places in squares of 2 x 2, finest first, before the squares. The
run-time attention puts the tokens of a window into rows and columns, as maps are counted everywhere else, and its outputs back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import MapAttention
from .compat import import_timm
from .feed_forward import feed_forward
from .forward import BlockCall, ForwardPass
from .grids import Grid
from .head_rows import head_channels, with_rows
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models.hiera import Hiera, HieraBlock, MaskUnitAttention  # noqa: E402  (timm must be imported through the guard)

KINDS = (Hiera,)
NAMES = ("hiera_*",)
OWN_ATTENTION_IN_ONNX = True  # heads and windows are two axes there, and ONNX's operator has one


def matches(model: nn.Module) -> bool:
    """True for timm's Hiera, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


def unrolled(grid: Grid, halvings: int) -> Int[Tensor, " tokens"]:
    """Where timm keeps the tokens of a map, by rows and columns, after as many moves of the places in squares of 2 x 2 to the front."""
    moved = 2 * halvings
    places = torch.arange(grid[0] * grid[1]).view(*[2] * moved, grid[0] >> halvings, grid[1] >> halvings)
    rows, columns = ([moved + axis, *range(moved - 2 + axis, -1, -2)] for axis in (0, 1))
    return places.permute(*rows, *columns).flatten()


def _halvings(attn: Any) -> int:
    """How often tokens that this attention puts out can still be pooled."""
    return (int(attn.window_size).bit_length() - 1) // 2


class UnitAttention(MapAttention):
    """timm's MaskUnitAttention. Queries are pooled behind their projection, 2 x 2, where they are fewer than the keys."""

    qkv: Any
    taken: Tensor
    returned: Tensor

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.qkv, self.q_stride = original.qkv, original.q_stride  # the block asks for the latter
        halvings, pooled = _halvings(original), site.key_grid is not None
        self.register_buffer("taken", self._places(site.key_grid or site.grid, halvings + pooled), persistent=False)
        self.register_buffer("returned", self._places(site.grid, halvings).argsort(), persistent=False)

    def _places(self, grid: Grid, halvings: int) -> Tensor:
        """Where timm keeps the tokens of all windows, window by window."""
        windows = self.site.windows
        return (unrolled(grid, halvings) * windows + torch.arange(windows)[:, None]).flatten().to(self.qkv.weight.device)

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        inner = self.site.heads * self.site.head_dim
        channels = head_channels(order, self.site.head_dim, self.qkv.weight.device)
        kept = channels[: logit_heads * self.site.head_dim]
        self.qkv = with_rows(self.qkv, torch.cat([kept, kept + inner, channels + 2 * inner]))

    def windows_of(self, tokens: Float[Tensor, "images tokens channels"], places: Tensor) -> Float[Tensor, "rows window channels"]:
        """Tokens in timm's order as windows, by rows and columns."""
        return tokens.index_select(1, places).unflatten(1, (self.site.windows, -1)).flatten(0, 1)

    def rows_read(self, read: Tensor) -> Float[Tensor, "rows queries channels"]:
        return self.windows_of(read, self.returned.argsort())

    def pool(self, q: Float[Tensor, "rows g keys width"]) -> Float[Tensor, "rows g queries width"]:
        """The largest of 2 x 2, channel by channel."""
        height, width = self.site.grid
        return q if self.site.key_grid is None else q.unflatten(2, (height, 2, width, 2)).amax((3, 5)).flatten(2, 3)

    def forward(self, x: Float[Tensor, "images tokens channels"]) -> Float[Tensor, "images pooled width"]:
        """Same signature as timm's MaskUnitAttention."""
        cut = self.logit_heads * self.site.head_dim
        q, k, v = self.qkv(self.windows_of(x, self.taken)).tensor_split([cut, 2 * cut], dim=-1)
        if self.logit_heads:
            mixed = self.mixed(self.pool(self.heads_of(q)), self.heads_of(k), self.heads_of(v))
        else:
            mixed = self.mixed(None, None, self.heads_of(v))
        tokens = mixed.unflatten(0, (-1, self.site.windows)).flatten(1, 2).index_select(1, self.returned)
        return self.proj_drop(self.proj(tokens))  # type: ignore[no-any-return]


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return UnitAttention(original, site)


def image_size_of(model: Any) -> Grid:
    """Height and width in pixels that the model was built for."""
    (height, width), (high, wide) = model.tokens_spatial_shape, model.patch_stride
    return (height * high, width * wide)


def final_grid(model: Any) -> Grid:
    """Rows and columns of the tokens behind the last block; they are in this order once all pooling is done."""
    halvings = sum(block.attn.q_stride > 1 for block in model.blocks)
    height, width = model.tokens_spatial_shape
    return (height >> halvings, width >> halvings)


def forward_pass(model: Any) -> ForwardPass:
    """How a Hiera runs block by block."""
    return ForwardPass(
        image_size=image_size_of(model),
        stem=lambda pixels: model.unroll(model._pos_embed(model.patch_embed(pixels))),
        blocks=tuple(BlockCall(f"blocks.{index}") for index in range(len(model.blocks))),
        head=lambda stream: model.forward_head(stream),
    )


def _check(model: Any) -> None:
    """Raise UnsupportedModel for videos, and where windows and pooling are not squares of 2 x 2, as often as there are stages."""
    if len(model.patch_stride) != 2:
        raise UnsupportedModel(f"this Hiera reads inputs of {len(model.patch_stride)} dimensions; only images are supported")
    levels, unit = len(model.stage_ends) - 1, tuple(model.mask_unit_size)
    if tuple(model.q_stride) != (2, 2) or model.q_pool != levels or unit != (2**levels,) * 2:
        raise UnsupportedModel(
            f"this Hiera has mask units of {unit[0]} x {unit[1]}, which pooling does not use up; only those are supported"
        )
    steps = [step * side for step, side in zip(model.patch_stride, unit, strict=True)]
    if any(tokens % side for tokens, side in zip(model.tokens_spatial_shape, unit, strict=True)):
        raise UnsupportedModel(f"this Hiera's images hold no whole number of mask units; give an image size in multiples of {steps[0]}")
    for index, block in enumerate(model.blocks):
        if not is_kind(block, HieraBlock):
            raise UnsupportedModel(f"blocks.{index} is a {named(block, HieraBlock)}; only Hiera's blocks are supported")
        if not is_kind(block.attn, MaskUnitAttention):
            raise UnsupportedModel(
                f"blocks.{index}.attn is {named(block.attn, MaskUnitAttention)}; only Hiera's own attention is supported"
            )


def _attention(attn: Any, name: str, index: int, grid: Grid) -> AttentionSite:
    """`grid`: height and width of the map that the block puts out."""
    pooled, windows = attn.q_stride > 1, 1
    if attn.use_mask_unit_attn:
        side = 1 << _halvings(attn)
        windows, grid = grid[0] * grid[1] // side**2, (side, side)
    keys = (2 * grid[0], 2 * grid[1]) if pooled else grid
    return AttentionSite(
        name, index, attn.heads, attn.head_dim, attn.dim_out, grid[0] * grid[1], keys[0] * keys[1], 0, grid, windows,
        key_grid=keys if pooled else None,
    )  # fmt: skip


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported."""
    _check(model)
    height, width = model.tokens_spatial_shape
    attention: list[AttentionSite] = []
    blocks: list[FeedForwardSite] = []
    linears = [LinearSite("patch_embed.proj", "stem", height * width)]
    for index, block in enumerate(model.blocks):
        name, before = f"blocks.{index}", height * width
        if block.attn.q_stride > 1:
            height, width = height // 2, width // 2
        site = _attention(block.attn, f"{name}.attn", index, (height, width))
        norms = [f"{name}.{norm}" if has_affine_norm(getattr(block, norm)) else None for norm in ("norm1", "norm2")]
        if block.proj is not None:  # it reads norm1, too
            linears.append(LinearSite(f"{name}.proj", "reduction", before))
            norms[0] = None
        forward, layers = feed_forward(block.mlp, f"{name}.mlp", index, height * width, norms[1])
        attention.append(site)
        blocks.append(forward)
        linears += [
            LinearSite(f"{site.name}.qkv", "qkv", before, norms[0]),
            LinearSite(f"{site.name}.proj", "proj", height * width),
            *layers,
        ]
    if isinstance(model.head.fc, nn.Linear):
        linears.append(LinearSite("head.fc", "head", 1))
    return ModelSites("hiera", image_size_of(model), tuple(attention), tuple(blocks), tuple(linears))
