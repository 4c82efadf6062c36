"""A quantized Pyramid Vision Transformer of version 2 as the tables of the native file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import nn

from ...methods.quantize.modules import QuantizedLayer
from ...vit import pvt_sites
from ...vit.compat import import_timm
from ...vit.grids import image_size_of
from ...vit.reduced_attention import PyramidAttention
from . import parts
from .format import DEPTHWISE, DOWNSAMPLE, HEAD, NONE, OVERLAPPING_EMBED, REDUCED_ATTENTION, Layer, ModelFile
from .parts import MEND, add_classifier, add_linear, add_norm, grid_of, quantized, refuse
from .plain_vit import MEAN, add_feed_forward, add_heads, add_norm_before, add_norm_step

import_timm()
from timm.models import pvt_v2  # noqa: E402  (timm must be imported through the guard)


def matches(module: nn.Module) -> bool:
    """True for version 2, the "linear" attention excluded, whose keys are pooled."""
    second = pvt_sites.matches(module) and isinstance(module, pvt_v2.PyramidVisionTransformerV2)
    return second and not any(getattr(each, "pool", None) is not None for each in module.modules())


def add_pvt(file: ModelFile, module: nn.Module) -> None:
    """The layers of a PVT v2. Raises VitfrostError for what the engine does not run."""
    pvt: Any = module
    grid = _embed(file, pvt)
    for number, stage in enumerate(pvt.stages):
        if number:
            grid = _downsample(file, stage.downsample, f"stages.{number}.downsample", grid)
        for place, block in enumerate(stage.blocks):
            name = f"stages.{number}.blocks.{place}"
            _add_attention(file, block, name, grid)
            convolution = _add_depthwise(file, block.mlp.dwconv, f"{name}.mlp.dwconv")
            add_feed_forward(file, block, name, grid[0] * grid[1], convolution=convolution)
        add_norm_step(file, stage.norm, f"stages.{number}.norm")
    if pvt.global_pool != "avg":
        raise refuse("the head", "it pools by nothing", MEND)
    file.add_layer(Layer(HEAD, (NONE, add_classifier(file, pvt.head, "head"), MEAN, NONE, 0, 0)))


def _kernel(layer: Any, where: str, padded: bool) -> tuple[int, ...]:
    """Height, width, steps down and to the right, rows above and columns left of a convolution's patches."""
    layer = quantized(layer, where)
    stride, padding, dilation, _ = layer.geometry
    if set(dilation) != {1} or (any(padding) and not padded):
        raise refuse(where, "its patches have holes, or reach over the grid", MEND)
    if any(padding) and layer.input_quantizer is not None:
        grid = grid_of(layer.input_quantizer, 1, f"the input of {where}")
        if not 0 <= grid.zero[0] < 2**grid.bits:
            raise refuse(where, f"zero is no code of its input (its zero point is {grid.zero[0]:g})", "calibrate on other images")
    return (*layer.codes.shape[2:], *stride, *padding)


def _by_rows(layer: QuantizedLayer) -> Int[ndarray, inputs]:
    """The places of (row, column, channel) among a kernel's (channel, row, column)."""
    shape = layer.codes.shape[1:]
    return np.arange(int(np.prod(shape))).reshape(*shape).transpose(1, 2, 0).reshape(-1)


def _embed(file: ModelFile, pvt: Any) -> tuple[int, int]:
    layer, (height, width) = pvt.patch_embed.proj, image_size_of(pvt)
    high, wide, down, right, top, left = _kernel(layer, "patch_embed.proj", True)
    grid = _grid(layer, (height, width))
    linear = add_linear(file, layer, "patch_embed.proj")
    ints = (layer.codes.shape[1], height, width, high, wide, linear, 0, layer.codes.shape[0], down, right, top, left, *grid)
    file.add_layer(Layer(OVERLAPPING_EMBED, ints))
    add_norm_step(file, pvt.patch_embed.norm, "patch_embed.norm")
    return grid


def _grid(layer: QuantizedLayer, grid: tuple[int, int]) -> tuple[int, int]:
    (down, right), (top, left) = layer.geometry[:2]
    high, wide = layer.codes.shape[2:]
    return (grid[0] + 2 * top - high) // down + 1, (grid[1] + 2 * left - wide) // right + 1


def _downsample(file: ModelFile, embedding: Any, where: str, grid: tuple[int, int]) -> tuple[int, int]:
    layer = embedding.proj
    kernel, made = _kernel(layer, f"{where}.proj", True), _grid(layer, grid)
    linear = add_linear(file, layer, f"{where}.proj", order=_by_rows(layer))
    after = add_norm(file, embedding.norm, f"{where}.norm")
    file.add_layer(Layer(DOWNSAMPLE, (NONE, linear, after, *kernel, *made, layer.codes.shape[0])))
    return made


@torch.no_grad()
def _add_attention(file: ModelFile, block: Any, name: str, grid: tuple[int, int]) -> None:
    module, where = block.attn, f"{name}.attn"
    if not isinstance(module, PyramidAttention):
        raise refuse(where, f"it is a {type(module).__name__}", MEND)
    heads = add_heads(file, module, where, grid[0] * grid[1], False)
    norm = add_norm_before(file, block.norm1, f"{name}.norm1", where)
    queries = NONE if module.q is None else add_linear(file, module.q, f"{where}.q")
    keys, proj = add_linear(file, module.kv, f"{where}.kv"), add_linear(file, module.proj, f"{where}.proj")
    reduction: tuple[int, ...] = (NONE, NONE, 1, 1)
    if module.sr is not None:
        high, wide, *_ = _kernel(module.sr, f"{where}.sr", False)
        linear = add_linear(file, module.sr, f"{where}.sr", order=_by_rows(module.sr))
        reduction = (linear, add_norm_before(file, module.norm, f"{where}.norm", f"{where}.kv"), high, wide)
    file.add_layer(Layer(REDUCED_ATTENTION, (norm, queries, proj, *heads.ints, keys, *reduction), (module.scale,), tuple(heads.tensors)))


def _add_depthwise(file: ModelFile, layer: Any, where: str) -> int:
    high, wide, *_ = _kernel(layer, where, True)
    if layer.input_quantizer is None:
        raise refuse(where, "weights are quantized alone", "plan with Quantize(activations=8)")
    grid = grid_of(layer.input_quantizer, 1, f"the input of {where}")
    codes = layer.codes.cpu().numpy().reshape(len(layer.codes), -1)
    arrays = (
        parts.to_array(layer.scale),
        parts.integers(layer.zero_point, where),
        None if layer.bias is None else parts.to_array(layer.bias),
    )
    tensors = (file.add_tensor(codes, layer.bits), *(file.add_tensor(each) for each in arrays))
    return file.add_layer(Layer(DEPTHWISE, (len(codes), high, wide, grid.bits), (float(grid.scale[0]), float(grid.zero[0])), tensors))
