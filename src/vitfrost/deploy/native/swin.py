"""A quantized Swin Transformer as the tables of the native file.

Shapes: C channels, Hs x Ws the grid of a stage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ...vit.compat import import_timm
from .format import DOWNSAMPLE, EMBED, HEAD, NONE, Layer, ModelFile
from .parts import MEND, add_classifier, add_linear, add_norm, refuse
from .plain_vit import MASK, MEAN, add_attention, add_feed_forward, add_norm_step, add_patches

import_timm()
from timm.models.swin_transformer import PatchMerging  # noqa: E402  (timm must be imported through the guard)


def add_swin(file: ModelFile, module: nn.Module) -> None:
    """The layers of a Swin Transformer. Raises VitfrostError for what the engine does not run."""
    swin: Any = module
    numbers = add_patches(file, swin.patch_embed, "patch_embed")
    width = swin.patch_embed.proj.codes.shape[0]
    file.add_layer(Layer(EMBED, (*numbers, 0, width)))
    add_norm_step(file, swin.patch_embed.norm, "patch_embed.norm")
    for number, stage in enumerate(swin.layers):
        if not isinstance(stage.downsample, nn.Identity):
            _merge_patches(file, stage.downsample, f"layers.{number}.downsample", stage.output_resolution)
        for place, block in enumerate(stage.blocks):
            name = f"layers.{number}.blocks.{place}"
            _check_mask(block, name)
            height, wide = block.input_resolution
            add_attention(file, block, name, block.attn.site.queries, windows=(*block.window_size, *block.shift_size))
            add_feed_forward(file, block, name, height * wide)
    _head(file, swin)


def _merge_patches(file: ModelFile, merging: Any, where: str, grid: tuple[int, int]) -> None:
    """Four patches side by side: timm has them by column and row, the engine by row and column."""
    if type(merging) is not PatchMerging:
        raise refuse(where, f"it is a {type(merging).__name__}", MEND)
    order = np.arange(4 * merging.dim).reshape(2, 2, merging.dim).transpose(1, 0, 2).reshape(-1)
    norm = add_norm(file, merging.norm, f"{where}.norm", order)
    linear = add_linear(file, merging.reduction, f"{where}.reduction", order=order)
    file.add_layer(Layer(DOWNSAMPLE, (norm, linear, NONE, 2, 2, 2, 2, 0, 0, *grid, merging.out_dim)))


def _check_mask(block: Any, name: str) -> None:
    mask = block.attn_mask
    if (mask is not None) != any(block.shift_size) or (mask is not None and not bool(torch.isin(mask, mask.new_tensor([0.0, MASK])).all())):
        raise refuse(name, "its mask is another one than that of its shifted windows", MEND)


def _head(file: ModelFile, swin: Any) -> None:
    pool = swin.head.global_pool.pool_type
    if pool != "avg":
        raise refuse("the head", f"it pools by {pool or 'nothing'}", MEND)
    norm, linear = add_norm(file, swin.norm, "norm"), add_classifier(file, swin.head.fc, "head.fc")
    file.add_layer(Layer(HEAD, (norm, linear, MEAN, NONE, 0, 0)))
