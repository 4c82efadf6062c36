"""A quantized plain ViT or DeiT as the tables of the native file.

Shapes: N tokens, P of them prefix tokens, C channels; of H heads g have queries and keys, q are hallucinated, F have constant maps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...methods.low_rank.projection import CompactProjection
from ...methods.quantize.turn import Turn
from ...vit import plain
from ...vit.attention import FusedAttention
from ...vit.compat import import_timm
from ...vit.feed_forward import has_bare_hidden_layer
from ...vit.lean import tokens_read
from . import parts
from .format import (
    ACTIVATIONS,
    ATTENTION,
    CONVOLVED_FEED_FORWARD,
    EMBED,
    FEED_FORWARD,
    HEAD,
    NONE,
    NORM_STEP,
    TURN_STEP,
    WINDOW_ATTENTION,
    Activation,
    Layer,
    ModelFile,
)
from .parts import MEND, add_classifier, add_linear, add_norm, grid_of, layer_scale, quantized, refuse

import_timm()
from timm.layers import PatchEmbed  # noqa: E402  (timm must be imported through the guard)

FIRST_TOKEN, MEAN, TWO_TOKENS, ALL_TOKENS = 0, 1, 2, 3
POOLING = {"token": FIRST_TOKEN, "avg": MEAN, "": ALL_TOKENS}
BIAS = 21  # the place of a relative bias among a layer's tensors
MASK = -100.0  # between regions of a shifted window, as timm has it
_ACTIVATIONS: dict[str, Activation] = {"GELU": "gelu", "GELUTanh": "gelu-tanh", "ReLU": "relu", "QuickGELU": "quick-gelu"}


def add_plain_vit(file: ModelFile, module: nn.Module) -> None:
    """The layers of a plain ViT. Raises VitfrostError for what the engine does not run."""
    vit = module
    _embed(file, vit)
    patches, prefix = int(np.prod(vit.patch_embed.grid_size)), int(vit.num_prefix_tokens)  # type: ignore[union-attr, arg-type, operator]
    tokens = patches + prefix
    for number, part in enumerate(parts_of(vit.norm_pre)):
        add_norm_or_turn(file, part, f"norm_pre.{number}")
    blocks = list(vit.blocks)  # type: ignore[arg-type]
    for index, block in enumerate(blocks):
        read = tokens_read(vit) if index + 1 == len(blocks) else None
        where = f"blocks.{index}"
        stretch = layer_scale(block.ls1, f"{where}.ls1"), layer_scale(block.ls2, f"{where}.ls2")
        add_attention(file, block, where, read or tokens, stretch[0])
        add_feed_forward(file, block, where, read or tokens, stretch[1])
    _head(file, vit, prefix)


def add_norm_step(file: ModelFile, norm: Any, where: str) -> None:
    """X = norm(X); nothing for an identity."""
    index = add_norm(file, norm, where)
    if index != NONE:
        file.add_layer(Layer(NORM_STEP, (index,)))


def parts_of(norm: Any) -> list[Any]:
    """A norm, and a turn of the stream beside it, in their order."""
    return list(norm) if isinstance(norm, nn.Sequential) else [norm]


def add_norm_or_turn(file: ModelFile, part: Any, where: str) -> None:
    """X = norm(X), or X turned."""
    if not isinstance(part, Turn):
        add_norm_step(file, part, where)
        return
    named = [file.add_tensor(parts.to_array(each.float())) for each in (part.small, part.places, part.signs)]
    file.add_layer(Layer(TURN_STEP, (len(part.small),), tensors=tuple(named)))


def add_patches(file: ModelFile, embedding: Any, where: str) -> tuple[int, ...]:
    """The linear layer of a patch embedding; the first numbers of an EMBED layer."""
    if type(embedding) is not PatchEmbed:
        raise refuse(where, f"it is a {type(embedding).__name__}", MEND)
    layer = quantized(embedding.proj, f"{where}.proj")
    stride, padding, dilation, groups = layer.geometry
    height, width = embedding.img_size
    channels, *patch = layer.codes.shape[1:]
    whole = all(side % length == 0 for side, length in zip(embedding.img_size, patch, strict=True))
    if tuple(stride) != tuple(patch) or any(padding) or set(dilation) != {1} or groups != 1 or not whole:
        raise refuse(where, "its patches overlap, or leave something of the picture out", MEND)
    return (channels, height, width, *patch, add_linear(file, layer, f"{where}.proj"))


@torch.no_grad()
def _embed(file: ModelFile, vit: Any) -> None:
    embedding = vit.patch_embed
    if not isinstance(embedding.norm, nn.Identity):
        raise refuse("patch_embed", f"it has a {type(embedding.norm).__name__}", MEND)
    numbers = add_patches(file, embedding, "patch_embed")
    channels, height, width = numbers[:3]
    like = next(vit.parameters())
    empty = embedding(torch.zeros(1, channels, height, width, dtype=like.dtype, device=like.device)).zero_()
    tokens = parts.to_array(vit._pos_embed(empty))[0]
    prefix = int(vit.num_prefix_tokens)
    named = (file.add_tensor(tokens[:prefix] if prefix else None), file.add_tensor(tokens[prefix:] if tokens[prefix:].any() else None))
    file.add_layer(Layer(EMBED, (*numbers, prefix, tokens.shape[1]), tensors=named))


class Heads(NamedTuple):
    """What the records of attention layers have in common: the numbers behind their layers, the tensors (none for a relative bias), and
    whether frozen entries and constant maps differ between windows."""

    ints: tuple[int, ...]
    tensors: list[int]
    own_entries: bool
    own_maps: bool


def add_heads(file: ModelFile, module: Any, where: str, read: int, local: bool) -> Heads:
    """Quantizers and maps of a layer's heads, for the first `read` tokens. `local`: constant maps may be kernels over the patch grid."""
    for part in ("q_norm", "k_norm"):
        if not isinstance(getattr(module, part, nn.Identity()), nn.Identity):
            raise refuse(where, f"{part} is a {type(getattr(module, part)).__name__}", MEND)
    heads, computed, moving = module.site.heads, module.logit_heads, module.moving_heads
    constant = heads - moving
    if any(source != "constants" for source, _ in module.apart) or (module.windowed is not None and not local):
        raise refuse(where, "its maps come from a source that the engine does not have", "export it with --format onnx")
    grids = {"v": grid_of(module.value_quantizer, heads, f"the values of {where}")}
    if computed:
        grids["q"] = grid_of(module.query_quantizer, computed, f"the queries of {where}")
        grids["k"] = grid_of(module.key_quantizer, computed, f"the keys of {where}")
    maps = parts.map_grid(module.map_quantizer, moving if computed else 0, where)
    others = [grids[letter] for letter in "qk" if computed]
    bits = parts.bits_of_heads(grids["v"], others, maps, (heads, computed, moving), where)
    frozen = None if module.frozen is None else parts.frozen_entries(module.frozen, maps, moving, where)
    made = None if module.hallucination is None else parts.hallucinated(module.hallucination, where)
    tensors = []
    for letter in "qkv":
        tensors += [file.add_tensor(values) for values in (grids[letter].scale, grids[letter].zero)] if letter in grids else [NONE, NONE]
    tensors += [file.add_tensor(maps.step), file.add_tensor(maps.zero)]
    tensors.append(file.add_tensor(frozen.codes, 8) if frozen is not None else NONE)
    own_maps = False
    kernels = parts.local_maps(module.constants, module.site.keys) if constant and local else None
    if constant and kernels is None:
        codes, scale, zero = parts.constant_maps(module.constants)
        own_maps = len(codes) > constant
        tensors += [file.add_tensor(codes, 8), file.add_tensor(scale), file.add_tensor(zero)]
    else:
        tensors += [NONE] * 3
    tensors += [NONE] * 3 if made is None else [file.add_tensor(each) for each in (made.mix, made.bias, made.convolution)]
    near = parts.near_heads(module, maps, where) if module.windowed is not None else None
    grid = kernels.grid if kernels is not None else near.grid if near is not None else (0, 0)
    kernel: tuple[int, ...] = (*((0, 0) if kernels is None else kernels.kernel.shape[1:]), *grid)
    tensors += [NONE] * 5 if kernels is None else [file.add_tensor(each) for each in kernels[:5]]
    tensors.append(file.add_tensor(frozen.step) if frozen is not None and frozen.step is not None else NONE)
    tensors += [NONE, file.add_tensor(bits.each), file.add_tensor(maps.octave)]
    side = 0 if made is None or made.convolution is None else made.convolution.shape[-1]
    ints = (
        heads, module.site.head_dim, computed, read, maps.mode, *bits.ints,
        constant, moving - computed, side, 0 if made is None else made.first, *kernel,
    )  # fmt: skip
    if local:
        ints += (*((0, 0) if near is None else near[:2]), 0 if kernels is None else kernels.apart)
    return Heads(ints, tensors, frozen is not None and len(frozen.codes) > moving, own_maps)


def add_norm_before(file: ModelFile, norm: nn.Module, where: str, layer: str) -> int:
    """The norm that a layer cannot do without."""
    found = add_norm(file, norm, where)
    if found == NONE:
        raise refuse(layer, "no norm is before it", MEND)
    return found


@torch.no_grad()
def add_attention(
    file: ModelFile, block: Any, name: str, read: int, stretch: Tensor | None = None, windows: tuple[int, int, int, int] | None = None
) -> None:
    """Norm and attention of a block, for the first `read` tokens. `stretch` [channels]: a LayerScale behind it. `windows`: height and width
    of Swin's, and how far down and to the right they are shifted."""
    module, where = block.attn, f"{name}.attn"
    if isinstance(block, plain.ResPostBlock):
        raise refuse(name, "its norms stand behind its layers", MEND)
    if not isinstance(module, FusedAttention) or (module.has_relative_bias and windows is None):
        raise refuse(where, f"it is a {type(module).__name__}", MEND)
    if not isinstance(module.norm, nn.Identity):
        raise refuse(where, f"norm is a {type(module.norm).__name__}", MEND)
    heads = add_heads(file, module, where, read, windows is None)
    scaled = None
    if module.scale_queries_first:
        width, computed = module.site.head_dim, module.logit_heads
        scaled = torch.ones((2 * computed + module.site.heads) * width)
        scaled[: computed * width] = module.scale
    norm = add_norm_before(file, block.norm1, f"{name}.norm1", where)
    qkv, proj = add_linear(file, module.qkv, f"{where}.qkv", scaled), add_linear(file, module.proj, f"{where}.proj", stretch)
    ints: tuple[int, ...] = (norm, qkv, proj, *heads.ints)
    factor = 1.0 if module.scale_queries_first else module.scale
    if windows is None:
        file.add_layer(Layer(ATTENTION, ints, (factor,), tuple(heads.tensors)))
        return
    bias = module.relative_bias() if module.logit_heads else None
    tensors = list(heads.tensors)
    tensors[BIAS] = file.add_tensor(None if bias is None else parts.to_array(bias[0]))
    file.add_layer(Layer(WINDOW_ATTENTION, (*ints, *windows, heads.own_entries, heads.own_maps), (factor, MASK), tuple(tensors)))


def add_feed_forward(
    file: ModelFile, block: Any, name: str, read: int, stretch: Tensor | None = None, convolution: int | None = None
) -> None:
    """Norm and feed-forward layers of a block, for the first `read` tokens. `stretch` [channels]: a LayerScale behind them. `convolution`:
    a DEPTHWISE layer before the activation."""
    mlp, where = block.mlp, f"{name}.mlp"
    norm = add_norm_before(file, block.norm2, f"{name}.norm2", where)
    if convolution is None and not has_bare_hidden_layer(mlp):
        raise refuse(where, f"it is a {type(mlp).__name__} with a gate, or with a norm between its layers", MEND)
    first = add_linear(file, mlp.fc1, f"{where}.fc1")
    if isinstance(mlp.fc2, CompactProjection):
        if not mlp.fc2.merged:
            raise refuse(f"{where}.fc2", "it is in the form of training", "save it as an artifact first")
        second = add_linear(file, mlp.fc2.down, f"{where}.fc2.down")
        third = add_linear(file, mlp.fc2.up, f"{where}.fc2.up", stretch)
    else:
        second, third = add_linear(file, mlp.fc2, f"{where}.fc2", stretch), NONE
    ints = (norm, first, second, third, ACTIVATIONS.index(_activation(mlp.act, where)), read)
    if convolution is None:
        file.add_layer(Layer(FEED_FORWARD, ints))
    else:
        file.add_layer(Layer(CONVOLVED_FEED_FORWARD, (*ints, convolution)))


def _activation(module: nn.Module, where: str) -> Activation:
    name = type(module).__name__
    if name not in _ACTIVATIONS:
        raise refuse(where, f"its activation is {name}", MEND)
    return "gelu-tanh" if getattr(module, "approximate", "none") == "tanh" else _ACTIVATIONS[name]


def _head(file: ModelFile, vit: Any, prefix: int) -> None:
    *turns, last = parts_of(vit.norm)
    for turn in turns:
        add_norm_or_turn(file, turn, "norm.0")
    if isinstance(vit, plain.VisionTransformerDistilled):
        norm, pooling, after = last, TWO_TOKENS, 0
    else:
        if vit.attn_pool is not None or vit.global_pool not in POOLING or (vit.pool_include_prefix and prefix):
            raise refuse("the head", f"it pools by {'attention' if vit.attn_pool is not None else vit.global_pool}", MEND)
        pooling = POOLING[vit.global_pool]
        if pooling == ALL_TOKENS:
            _all_tokens(file, vit, last)
            return
        norm, after = (last, 0) if isinstance(vit.fc_norm, nn.Identity) else (vit.fc_norm, 1)
        if after:
            add_norm_step(file, last, "norm")
    index, linear = add_norm(file, norm, "norm"), add_classifier(file, vit.head, "head")
    second = add_linear(file, vit.head_dist, "head_dist") if pooling == TWO_TOKENS else NONE
    file.add_layer(Layer(HEAD, (index, linear, pooling, second, prefix, after)))


def _all_tokens(file: ModelFile, vit: Any, norm: Any) -> None:
    """Tokens as they are behind the last norms."""
    if not isinstance(vit.head, nn.Identity):
        raise refuse("the head", "it has classes for every token", MEND)
    add_norm_step(file, norm, "norm")
    add_norm_step(file, vit.fc_norm, "fc_norm")
    file.add_layer(Layer(HEAD, (NONE, NONE, ALL_TOKENS, NONE, 0, 0)))
