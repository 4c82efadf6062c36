"""A quantized plain ViT or DeiT as the tables of the native file.

Shapes: N tokens, P of them prefix tokens, C channels; of H heads g have queries and keys, q are hallucinated, F have constant maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import VitfrostError
from ...methods.low_rank.projection import CompactProjection
from ...methods.quantize.modules import QuantizedLayer
from ...vit import plain
from ...vit.attention import FusedAttention
from ...vit.compat import import_timm
from ...vit.lean import tokens_read
from . import parts
from .format import ACTIVATIONS, ATTENTION, EMBED, FEED_FORWARD, HEAD, NONE, NORM_STEP, Activation, Layer, ModelFile
from .parts import MEND, add_linear, add_norm, grid_of, layer_scale, refuse

import_timm()
from timm.layers import PatchEmbed  # noqa: E402  (timm must be imported through the guard)

FIRST_TOKEN, MEAN, TWO_TOKENS = 0, 1, 2
_ACTIVATIONS: dict[str, Activation] = {"GELU": "gelu", "GELUTanh": "gelu-tanh", "ReLU": "relu", "QuickGELU": "quick-gelu"}


def check_family(module: nn.Module, name: str) -> None:
    """Raise VitfrostError for a model that is no plain ViT."""
    if not plain.matches(module):
        raise VitfrostError(f"{name} is a {type(module).__name__}, and the native engine runs plain ViTs and DeiTs so far; {MEND}")


def to_native(module: nn.Module, name: str) -> ModelFile:
    """The file of a plain ViT whose layers are QuantizedLayer and whose attention layers are MapAttention; maps without a quantizer are
    computed in 8 bits of each row's largest weight. Raises VitfrostError for what the engine does not run."""
    check_family(module, name)
    file, vit = ModelFile(), module
    _embed(file, vit)
    patches, prefix = int(np.prod(vit.patch_embed.grid_size)), int(vit.num_prefix_tokens)  # type: ignore[union-attr, arg-type, operator]
    tokens = patches + prefix
    _norm_step(file, vit.norm_pre, "norm_pre")
    blocks = list(vit.blocks)  # type: ignore[arg-type]
    for index, block in enumerate(blocks):
        read = tokens_read(vit) if index + 1 == len(blocks) else None
        _attention(file, block, f"blocks.{index}", read or tokens)
        _feed_forward(file, block, f"blocks.{index}", read or tokens)
    _head(file, vit, prefix)
    return file


def _norm_step(file: ModelFile, norm: Any, where: str) -> None:
    index = add_norm(file, norm, where)
    if index != NONE:
        file.add_layer(Layer(NORM_STEP, (index,)))


@torch.no_grad()
def _embed(file: ModelFile, vit: Any) -> None:
    embedding, where = vit.patch_embed, "patch_embed"
    layer = embedding.proj
    if type(embedding) is not PatchEmbed or not isinstance(embedding.norm, nn.Identity):
        raise refuse(where, f"it is a {type(embedding).__name__} with {type(embedding.norm).__name__}", MEND)
    if not isinstance(layer, QuantizedLayer):
        raise refuse(where, "its weights are in floating point", MEND)
    stride, padding, dilation, groups = layer.geometry
    height, width = embedding.img_size
    channels, *patch = layer.codes.shape[1:]
    whole = all(side % length == 0 for side, length in zip(embedding.img_size, patch, strict=True))
    if tuple(stride) != tuple(patch) or any(padding) or set(dilation) != {1} or groups != 1 or not whole:
        raise refuse(where, "its patches overlap, or leave something of the picture out", MEND)
    linear = add_linear(file, layer, "patch_embed.proj")
    like = next(vit.parameters())
    empty = embedding(torch.zeros(1, channels, height, width, dtype=like.dtype, device=like.device)).zero_()
    tokens = parts.to_array(vit._pos_embed(empty))[0]
    prefix = int(vit.num_prefix_tokens)
    named = (file.add_tensor(tokens[:prefix] if prefix else None), file.add_tensor(tokens[prefix:] if tokens[prefix:].any() else None))
    ints = (channels, height, width, *patch, linear, prefix, tokens.shape[1])
    file.add_layer(Layer(EMBED, ints, tensors=named))


def _attention(file: ModelFile, block: Any, name: str, read: int) -> None:
    module, where = block.attn, f"{name}.attn"
    if not isinstance(module, FusedAttention) or module.has_relative_bias:
        raise refuse(where, f"it is a {type(module).__name__}", MEND)
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(module, part), nn.Identity):
            raise refuse(where, f"{part} is a {type(getattr(module, part)).__name__}", MEND)
    heads, computed, moving = module.site.heads, module.logit_heads, module.moving_heads
    constant = heads - moving
    if module.windowed is not None or any(source != "constants" for source, _ in module.apart):
        raise refuse(where, "its maps come from a source that the engine does not have", "export it with --format onnx")
    grids = {"v": grid_of(module.value_quantizer, heads, f"the values of {where}")}
    if computed:
        grids["q"] = grid_of(module.query_quantizer, computed, f"the queries of {where}")
        grids["k"] = grid_of(module.key_quantizer, computed, f"the keys of {where}")
    if len({grid.bits for grid in grids.values()}) > 1:
        raise refuse(where, "queries, keys and values have different bits", "vitfrost evaluate simulates it")
    maps = parts.map_grid(module.map_quantizer, moving if computed else 0, where)
    frozen = None if module.frozen is None else parts.frozen_entries(module.frozen, maps, moving, where)
    made = None if module.hallucination is None else parts.hallucinated(module.hallucination, where)
    norm, qkv = add_norm(file, block.norm1, f"{name}.norm1"), add_linear(file, module.qkv, f"{where}.qkv")
    if norm == NONE:
        raise refuse(where, "no norm is before it", MEND)
    proj = add_linear(file, module.proj, f"{where}.proj", layer_scale(block.ls1, f"{name}.ls1"))
    tensors = []
    for letter in "qkv":
        tensors += [file.add_tensor(values) for values in (grids[letter].scale, grids[letter].zero)] if letter in grids else [NONE, NONE]
    tensors += [file.add_tensor(maps.step), file.add_tensor(maps.zero)]
    tensors.append(file.add_tensor(frozen.codes, 8) if frozen is not None else NONE)
    local = parts.local_maps(module.constants, module.site.keys) if constant else None
    if constant and local is None:
        codes, scale, zero = parts.constant_maps(module.constants, where)
        tensors += [file.add_tensor(codes, 8), file.add_tensor(scale), file.add_tensor(zero)]
    else:
        tensors += [NONE] * 3
    tensors += [NONE] * 3 if made is None else [file.add_tensor(each) for each in (made.mix, made.bias, made.convolution)]
    kernel: tuple[int, ...] = (0, 0, 0, 0) if local is None else (*local.kernel.shape[1:], *local.grid)
    tensors += [NONE] * 5 if local is None else [file.add_tensor(each) for each in local[:5]]
    tensors.append(file.add_tensor(frozen.step) if frozen is not None and frozen.step is not None else NONE)
    side = 0 if made is None or made.convolution is None else made.convolution.shape[-1]
    ints = (
        norm, qkv, proj, heads, module.site.head_dim, computed, read, maps.mode, maps.bits, maps.zero_code, grids["v"].bits,
        constant, moving - computed, side, 0 if made is None else made.first, *kernel,
    )  # fmt: skip
    factor = 1.0 if module.scale_queries_first else module.scale
    file.add_layer(Layer(ATTENTION, ints, (factor,), tuple(tensors)))


def _feed_forward(file: ModelFile, block: Any, name: str, read: int) -> None:
    mlp, where = block.mlp, f"{name}.mlp"
    norm = add_norm(file, block.norm2, f"{name}.norm2")
    if norm == NONE:
        raise refuse(where, "no norm is before it", MEND)
    first = add_linear(file, mlp.fc1, f"{where}.fc1")
    stretch = layer_scale(block.ls2, f"{name}.ls2")
    if isinstance(mlp.fc2, CompactProjection):
        if not mlp.fc2.merged:
            raise refuse(f"{where}.fc2", "it is in the form of training", "save it as an artifact first")
        second = add_linear(file, mlp.fc2.down, f"{where}.fc2.down")
        third = add_linear(file, mlp.fc2.up, f"{where}.fc2.up", stretch)
    else:
        second, third = add_linear(file, mlp.fc2, f"{where}.fc2", stretch), NONE
    file.add_layer(Layer(FEED_FORWARD, (norm, first, second, third, ACTIVATIONS.index(_activation(mlp.act, where)), read)))


def _activation(module: nn.Module, where: str) -> Activation:
    name = type(module).__name__
    if name not in _ACTIVATIONS:
        raise refuse(where, f"its activation is {name}", MEND)
    return "gelu-tanh" if getattr(module, "approximate", "none") == "tanh" else _ACTIVATIONS[name]


def _head(file: ModelFile, vit: Any, prefix: int) -> None:
    if isinstance(vit, plain.VisionTransformerDistilled):
        norm, pooling, after = vit.norm, TWO_TOKENS, 0
    else:
        if vit.attn_pool is not None or vit.global_pool not in ("token", "avg") or (vit.pool_include_prefix and prefix):
            raise refuse("the head", f"it pools by {'attention' if vit.attn_pool is not None else vit.global_pool}", MEND)
        pooling = FIRST_TOKEN if vit.global_pool == "token" else MEAN
        norm, after = (vit.norm, 0) if isinstance(vit.fc_norm, nn.Identity) else (vit.fc_norm, 1)
        if after:
            _norm_step(file, vit.norm, "norm")
    index, linear = add_norm(file, norm, "norm"), add_linear(file, vit.head, "head")
    second = add_linear(file, vit.head_dist, "head_dist") if pooling == TWO_TOKENS else NONE
    file.add_layer(Layer(HEAD, (index, linear, pooling, second, prefix, after)))
