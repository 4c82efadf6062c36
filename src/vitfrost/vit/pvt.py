"""The Pyramid Vision Transformer, version 1 (Wang et al., ICCV 2021), registered with timm as `vitfrost_pvt_tiny` to `vitfrost_pvt_large`.

timm has version 2 only. Version 1 has patches that do not overlap, learned positions in every stage, and a class token in the
last one; its attention, whose keys and values are those of a strided convolution of the tokens, is the one of version 2.
Positions are learned on the grid of one image size and interpolated to that of each image.

Shapes: B images, C channels, N tokens of a stage on a grid [height, width], D its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .compat import import_timm

import_timm()
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402  (timm must be imported through the guard)
from timm.layers import (  # noqa: E402
    DropPath,
    Mlp,
    PatchEmbed,
    calculate_drop_path_rates,
    resample_abs_pos_embed,
    to_2tuple,
    trunc_normal_,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model  # noqa: E402
from timm.models.pvt_v2 import Attention  # noqa: E402

_norm = partial(nn.LayerNorm, eps=1e-6)


class Block(nn.Module):
    """Pre-norm attention with spatially reduced keys, then a feed-forward block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int | float, sr_ratio: int, drop_path: int | float):
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = Attention(width, num_heads=heads, sr_ratio=sr_ratio, qkv_bias=True)
        self.norm2 = _norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B N D"]:
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PVTStage(nn.Module):
    """Patches of the map before, learned positions on `grid` (after `prefix` tokens), and the stage's blocks."""

    def __init__(self, channels: int, patch_size: int, width: int, grid: tuple[int, int], prefix: int, blocks: Sequence[Block]):
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.patch_embed = PatchEmbed(None, patch_size, channels, width, norm_layer=nn.LayerNorm, output_fmt="NHWC")
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(blocks)

    def embed(
        self, x: Float[Tensor, "B C high wide"], prefix: Float[Tensor, "1 P D"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The tokens into the first block, prefix first, and the grid of the others."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if prefix is not None:
            x = torch.cat([prefix.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + resample_abs_pos_embed(
            self.pos_embed, list(grid), list(self.grid), num_prefix_tokens=self.prefix, interpolation="bilinear", antialias=False
        )
        return x, grid

    def forward(
        self, x: Float[Tensor, "B C high wide"], prefix: Float[Tensor, "1 P D"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The tokens, prefix first, and the grid of the others."""
        x, grid = self.embed(x, prefix)
        for block in self.blocks:
            x = block(x, grid)
        return x, grid


class PyramidVisionTransformer(nn.Module):
    """PVT v1: four stages of 4, 8, 16, 32 px per token, the class token of the last one classified.

    `position_size`: image size in pixels on whose grids the positions are learned. Options as in timm's version 2.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        position_size: int | tuple[int, int] = 224,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int | float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: int | float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = embed_dims[-1]
        if sr_ratios[-1] != 1:
            raise ValueError("the last stage has a class token, which lies on no grid; its sr_ratio must be 1")
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        high, wide = to_2tuple(position_size)
        channels, reduction, stages = in_chans, 1, []
        settings = zip(embed_dims, num_heads, mlp_ratios, sr_ratios, rates, strict=True)
        for index, (width, heads, mlp_ratio, sr_ratio, drop_paths) in enumerate(settings):
            patch_size = 4 if index == 0 else 2
            reduction *= patch_size
            blocks = [Block(width, heads, mlp_ratio, sr_ratio, rate) for rate in drop_paths]
            prefix = int(index == len(embed_dims) - 1)
            stages.append(PVTStage(channels, patch_size, width, (high // reduction, wide // reduction), prefix, blocks))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.norm = _norm(channels)
        self.head = nn.Linear(channels, num_classes) if num_classes > 0 else nn.Identity()
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PVTStage):
                trunc_normal_(module.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    def forward_features(self, x: Float[Tensor, "B C height width"]) -> Float[Tensor, "B N D"]:
        """Normalized tokens of the last stage, class token first."""
        for stage in self.stages[:-1]:
            tokens, grid = stage(x)
            x = tokens.transpose(1, 2).unflatten(2, grid)
        return self.norm(self.stages[-1](x, self.cls_token)[0])

    def forward(self, x: Float[Tensor, "B C height width"]) -> Float[Tensor, "B classes"]:
        """Logits, or the class token's features where there are no classes."""
        return self.head(self.forward_features(x)[:, 0])


# crop_pct as the authors evaluate: the shorter side to 256 px, then the middle 224.
_CONFIGURATION = {
    "input_size": (3, 224, 224), "num_classes": 1000, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
    "crop_pct": 0.875, "interpolation": "bicubic", "first_conv": "stages.0.patch_embed.proj", "classifier": "head",
}  # fmt: skip
_DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
default_cfgs = generate_default_cfgs({f"vitfrost_pvt_{size}": _CONFIGURATION for size in _DEPTHS})


def _create(size: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    return build_model_with_cfg(PyramidVisionTransformer, f"vitfrost_pvt_{size}", pretrained, **{"depths": _DEPTHS[size], **options})


@register_model
def vitfrost_pvt_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """PVT-Tiny: 13.2 M parameters, 1.9 G multiply-accumulates."""
    return _create("tiny", pretrained, options)


@register_model
def vitfrost_pvt_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """PVT-Small: 24.5 M parameters, 3.8 G multiply-accumulates."""
    return _create("small", pretrained, options)


@register_model
def vitfrost_pvt_medium(pretrained: bool = False, **options: Any) -> nn.Module:
    """PVT-Medium: 44.2 M parameters, 6.7 G multiply-accumulates."""
    return _create("medium", pretrained, options)


@register_model
def vitfrost_pvt_large(pretrained: bool = False, **options: Any) -> nn.Module:
    """PVT-Large: 61.4 M parameters, 9.8 G multiply-accumulates."""
    return _create("large", pretrained, options)
