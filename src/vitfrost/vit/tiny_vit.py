"""timm's TinyViTs: a stage of convolutions, then stages of attention in windows, each followed by a convolution over the map.

Convolutions stay as they are. Windows at the edge are padded with zeros, which attend and are attended to as Swin's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModel
from .attention import MapAttention, Projections
from .compat import import_timm
from .feed_forward import feed_forward
from .forward import BlockCall, ForwardPass, through_convolution
from .grids import Grid, check_not_empty, convolved, image_size_of
from .head_rows import with_rows
from .kinds import has_affine_norm, is_kind, named
from .sites import AttentionSite, FeedForwardSite, LinearSite, ModelSites

import_timm()
from timm.models.tiny_vit import Attention, TinyVit, TinyVitBlock  # noqa: E402  (timm must be imported through the guard)

KINDS = (TinyVit,)
NAMES = ("tiny_vit_*",)


def matches(model: nn.Module) -> bool:
    """True for timm's TinyVit, and for subclasses with the same forward pass."""
    return is_kind(model, *KINDS)


class ForgetfulAttention(Attention):  # type: ignore[misc]
    """timm's attention, which gathers its biases anew in every call. Those that timm keeps from call to call may belong to a graph, or to
    inference mode, and a model that holds such tensors can be neither copied nor trained."""

    attention_bias_idxs: Tensor

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """Biases [heads, tokens, tokens]."""
        biases: Tensor = self.attention_biases[:, self.attention_bias_idxs]
        return biases


def forget_biases(model: nn.Module, *, forever: bool = False) -> None:
    """Let go of the biases that timm's attention layers hold; `forever`: they will hold none again."""
    for module in model.modules():
        if type(module) is Attention:
            module.attention_bias_cache = {}
            if forever:
                module.__class__ = ForgetfulAttention


class WindowedAttention(MapAttention):
    """timm's Attention of TinyViT: a LayerNorm of its own, queries, keys and values head by head, a bias per head and distance."""

    qkv: Any
    attention_biases: nn.Parameter | None
    attention_bias_idxs: Tensor

    def __init__(self, original: Any, site: AttentionSite):
        super().__init__(original, site)
        self.norm, self.qkv, self.head_by_head = original.norm, original.qkv, True
        self.attention_biases = original.attention_biases
        self.register_buffer("attention_bias_idxs", original.attention_bias_idxs, persistent=False)

    def split_heads(self, order: Sequence[int], logit_heads: int) -> None:
        heads, width = self.site.heads, self.site.head_dim
        q, k, v = torch.arange(3 * heads * width, device=self.qkv.weight.device).view(heads, 3, width).unbind(1)
        kept, all_of_them = list(order[:logit_heads]), list(order)
        self.qkv = with_rows(self.qkv, torch.cat([part.flatten() for part in (q[kept], k[kept], v[all_of_them])]))
        self.head_by_head = False
        biases = self.attention_biases
        assert biases is not None
        self.attention_biases = nn.Parameter(biases.detach()[kept], biases.requires_grad) if kept else None

    @property
    def has_relative_bias(self) -> bool:
        return self.attention_biases is not None

    def project(self, x: Float[Tensor, "rows tokens channels"]) -> Projections:
        """Queries and keys [rows, g, N, D] (None where g is 0), values [rows, H, N, D]."""
        stacked = self.qkv(x)
        if self.head_by_head:
            q, k, v = stacked.unflatten(-1, (self.site.heads, 3 * self.site.head_dim)).transpose(1, 2).chunk(3, dim=-1)
            return q, k, v
        if not self.logit_heads:
            return None, None, self.heads_of(stacked)
        cut = self.logit_heads * self.site.head_dim
        q, k, v = (self.heads_of(part) for part in stacked.tensor_split([cut, 2 * cut], dim=-1))
        return q, k, v

    def relative_bias(self) -> Float[Tensor, "1 g tokens tokens"] | None:
        """The position bias of the heads with logits."""
        return None if self.attention_biases is None else self.attention_biases[:, self.attention_bias_idxs].unsqueeze(0)

    def forward(self, x: Float[Tensor, "rows tokens channels"]) -> Float[Tensor, "rows tokens channels"]:
        """Same signature as timm's Attention."""
        return self.proj_drop(self.proj(self.mixed(*self.project(self.norm(x)), self.relative_bias())))  # type: ignore[no-any-return]


def map_attention(original: nn.Module, site: AttentionSite) -> MapAttention:
    """The run-time attention that takes over an attention layer of this family."""
    return WindowedAttention(original, site)


def forward_pass(model: Any) -> ForwardPass:
    """How a TinyViT runs block by block; patches are merged before the first block of a stage."""
    stages = list(model.stages)
    first = through_convolution(stages[1].downsample, channels_last=False)
    calls = [
        BlockCall(
            f"stages.{number}.blocks.{place}",
            through_convolution(stage.downsample, channels_last=True) if number > 1 and not place else None,
        )
        for number, stage in enumerate(stages[1:], 1)
        for place in range(len(stage.blocks))
    ]
    return ForwardPass(
        image_size=image_size_of(model),
        stem=lambda pixels: first(stages[0](model.patch_embed(pixels))),
        blocks=tuple(calls),
        head=lambda stream: model.forward_head(stream.permute(0, 3, 1, 2)),
        after_attention="local_conv",
        mid_channels_first=True,
        tokens_channels_first=True,
    )


def _kept(module: nn.Module, name: str, grid: Grid) -> tuple[list[LinearSite], Grid]:
    """The convolutions of a module, one after another, and the height and width of what they make of a map."""
    found: list[LinearSite] = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            grid = convolved(layer, grid)
            found.append(LinearSite(f"{name}.{path}" if path else name, "convolution", grid[0] * grid[1]))
    return found, grid


def _check_block(block: Any, name: str) -> None:
    if not is_kind(block, TinyVitBlock):
        raise UnsupportedModel(f"{name} is a {named(block, TinyVitBlock)}; only TinyViT's blocks are supported")
    if not is_kind(block.attn, Attention, ForgetfulAttention):
        raise UnsupportedModel(f"{name}.attn is {named(block.attn, Attention)}; only TinyViT's own attention is supported")


def _attention(block: Any, name: str, index: int, grid: Grid) -> tuple[AttentionSite, list[LinearSite]]:
    """The norm of this attention is behind the padding, so scales can move from it into `qkv` in padded windows, too."""
    attn, side = block.attn, block.window_size
    windows, area = -(-grid[0] // side) * -(-grid[1] // side), side**2
    site = AttentionSite(name, index, attn.num_heads, attn.key_dim, attn.proj.out_features, area, area, 0, (side, side), windows)
    norm = f"{name}.norm" if has_affine_norm(attn.norm) else None
    return site, [LinearSite(f"{name}.qkv", "qkv", windows * area, norm), LinearSite(f"{name}.proj", "proj", windows * area)]


def find_sites(model: Any) -> ModelSites:
    """Attention, feed-forward and linear sites. Raises UnsupportedModel naming the first part that is not supported, VitfrostError for an
    image that is too small."""
    size = image_size_of(model)
    kept, grid = _kept(model.patch_embed, "patch_embed", size)
    kept += _kept(model.stages[0], "stages.0", grid)[0]
    attention: list[AttentionSite] = []
    blocks: list[FeedForwardSite] = []
    linears: list[LinearSite] = []
    for number, stage in enumerate(list(model.stages)[1:], 1):
        merging, grid = _kept(stage.downsample, f"stages.{number}.downsample", grid)
        kept += merging
        check_not_empty(f"stages.{number}", size, grid[0] * grid[1])
        for place, block in enumerate(stage.blocks):
            name = f"stages.{number}.blocks.{place}"
            _check_block(block, name)
            site, layers = _attention(block, f"{name}.attn", len(attention), grid)
            norm = f"{name}.mlp.norm" if has_affine_norm(block.mlp.norm) else None
            forward, more = feed_forward(block.mlp, f"{name}.mlp", len(blocks), grid[0] * grid[1], norm)
            attention.append(site)
            blocks.append(forward)
            linears += [*layers, *more]
            kept += _kept(block.local_conv, f"{name}.local_conv", grid)[0]
    if isinstance(model.head.fc, nn.Linear):
        linears.append(LinearSite("head.fc", "head", 1))
    return ModelSites("tiny_vit", size, tuple(attention), tuple(blocks), tuple(linears), tuple(kept))
