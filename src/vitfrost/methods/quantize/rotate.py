"""A plain ViT rotated: LayerNorms folded into the layers behind them and LayerScale into those before it, then the residual stream, queries
with keys, and values turned.

The function stays the same up to rounding. Rotations lie in the weights where the stream is written and read by linear layers. Where
something else stands at its beginning (a LayerNorm in front of the first block) or its end (features that nothing linear reads), it is
turned by a layer of its own there (see turn.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...vit import plain
from ...vit.attention import FusedAttention
from ...vit.compat import import_timm
from ...vit.kinds import has_affine_norm
from ...vit.sites import ModelSites
from .hadamard import factors, rotation, rotation_of_stream
from .turn import Turn, turn_before, turn_behind

import_timm()
from timm.layers import LayerScale  # noqa: E402  (timm must be imported through the guard)

_LINEAR_POOLING = ("token", "avg", "")  # which a rotation commutes with


class _Ends(NamedTuple):
    """What is at the ends of a stream: whether it has to be turned by a layer of its own at its beginning and at its end, the norm that is
    folded into the heads where it has not, and whether the mean of its channels may be taken away."""

    behind: bool
    before: bool
    last: nn.Module
    without_mean: bool


def _ends(vit: Any, sites: ModelSites) -> _Ends:
    bare = all(isinstance(part, nn.Identity) for part in (vit.norm_pre, getattr(vit.patch_embed, "norm", nn.Identity())))
    behind = not bare or not sites.linears or sites.linears[0].role != "stem"
    last = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    alone = isinstance(vit.norm, nn.Identity) or isinstance(vit.fc_norm, nn.Identity)
    linear = vit.attn_pool is None and vit.global_pool in _LINEAR_POOLING and any(site.role == "head" for site in sites.linears)
    before = not (linear and alone and has_affine_norm(last))
    # Features behind no norm, as of a model whose last norm comes after pooling, have the mean of their channels.
    return _Ends(behind, before, last, not before or isinstance(vit.norm, nn.LayerNorm))


def can_rotate(model: nn.Module, sites: ModelSites) -> bool:
    """Whether everything within the blocks that reads the residual stream is a linear layer behind a LayerNorm with gain and bias, and
    everything there that writes to it a linear layer, with LayerScale or without. Where the stream has to be turned at its ends, it also
    needs a width that a Hadamard matrix is made for."""
    if not plain.matches(model) or not all(site.norm is not None for site in sites.linears if site.role in ("qkv", "fc1")):
        return False
    vit: Any = model
    for block in vit.blocks:
        if not all(isinstance(scale, nn.Identity | LayerScale) for scale in (block.ls1, block.ls2)):
            return False
        if not all(has_affine_norm(norm) for norm in (block.norm1, block.norm2)):
            return False
    ends = _ends(vit, sites)
    return not (ends.behind or ends.before) or factors(vit.embed_dim) is not None


@torch.no_grad()
def rotate(model: nn.Module, sites: ModelSites, seed: int) -> None:
    """Rotate `model` in place. The stream's rotation depends on its width and the seed only, so two models of one width agree. Features of
    a model without a linear head come out as they were.

    Raises ValueError for a model that `can_rotate` refuses.
    """
    if not can_rotate(model, sites):
        raise ValueError(f"this {type(model).__name__} cannot be rotated")
    vit: Any = model
    heads = [site.name for site in sites.linears if site.role == "head"]
    ends = _ends(vit, sites)
    _fold_scales(vit, sites)
    for site in sites.linears:
        if site.norm is not None:
            _fold(model.get_submodule(site.norm), [model.get_submodule(site.name)])
    device = next(model.parameters()).device
    turn = rotation_of_stream(vit.embed_dim, torch.Generator().manual_seed(seed)).to(device)
    # The mean of the channels is taken away where they are written, not where they are read.
    written = turn - turn.mean(0) if ends.without_mean else turn
    own = Turn.of_stream(vit.embed_dim, seed, ends.without_mean).to(next(model.parameters())) if ends.behind or ends.before else None
    if ends.behind:
        assert own is not None
        vit.norm_pre = turn_behind(vit.norm_pre, own)
    else:
        for name in ("cls_token", "pos_embed", "reg_token", "dist_token"):
            value = getattr(vit, name, None)
            if value is not None:
                value.data = (value.double() @ written).to(value.dtype)
    if ends.before:
        assert own is not None
        vit.norm = turn_before(vit.norm, own.back())
    else:
        _fold(ends.last, [model.get_submodule(name) for name in heads])
    writing = ("proj", "fc2") if ends.behind else ("stem", "proj", "fc2")
    for site in sites.linears:
        layer: Any = model.get_submodule(site.name)
        if site.norm is not None or (site.role == "head" and not ends.before):
            _set(layer, layer.weight.double() @ turn)
        elif site.role in writing and not site.name.endswith(".down"):
            _set(layer, written.T @ layer.weight.double().flatten(1), None if layer.bias is None else layer.bias.double() @ written)
    generator = torch.Generator().manual_seed(seed + 1)
    for attention in sites.attention:
        _rotate_heads(model.get_submodule(attention.name), generator)


def _set(layer: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.data = weight.to(layer.weight.dtype).reshape(layer.weight.shape)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


def _fold(norm: Any, layers: list[Any]) -> None:
    """Move gain and bias of a LayerNorm into the layers that read it."""
    gain, shift = norm.weight.double(), norm.bias.double()
    for layer in layers:
        weight = layer.weight.double()
        bias = weight @ shift if layer.bias is None else layer.bias.double() + weight @ shift
        _set(layer, weight * gain, bias)
    norm.weight.data, norm.bias.data = torch.ones_like(norm.weight), torch.zeros_like(norm.bias)


def _fold_scales(vit: Any, sites: ModelSites) -> None:
    """Move LayerScale into the layers before it."""
    for number, block in enumerate(vit.blocks):
        for role, scale in (("proj", block.ls1), ("fc2", block.ls2)):
            if isinstance(scale, nn.Identity):
                continue
            for site in sites.linears:
                if site.role == role and site.name.startswith(f"blocks.{number}.") and not site.name.endswith(".down"):
                    layer, gamma = vit.get_submodule(site.name), scale.gamma.double()
                    bias = None if layer.bias is None else layer.bias.double() * gamma
                    _set(layer, layer.weight.double().flatten(1) * gamma[:, None], bias)
            scale.gamma.data = torch.ones_like(scale.gamma)


def _rotate_heads(attention: nn.Module, generator: torch.Generator) -> None:
    """Turn queries and keys of a head alike, and its values against the columns of the projection that read them."""
    if not isinstance(attention, FusedAttention):
        return
    width, moving = attention.site.head_dim, attention.logit_heads
    rows = attention.qkv.weight.double()
    bias = None if attention.qkv.bias is None else attention.qkv.bias.double()
    columns = attention.proj.weight.double()
    bare = isinstance(attention.q_norm, nn.Identity) and isinstance(attention.k_norm, nn.Identity)
    for original in range(attention.site.heads):  # in this order, so that the same heads of another model are turned alike
        head = attention.order.index(original)
        turn = rotation(width, generator).to(rows.device)
        places = [2 * moving + head]
        if head < moving and bare:
            for place in (head, moving + head):
                _turn_rows(rows, bias, slice(place * width, (place + 1) * width), turn)
        turn = rotation(width, generator).to(rows.device)
        if isinstance(attention.norm, nn.Identity):
            for place in places:
                _turn_rows(rows, bias, slice(place * width, (place + 1) * width), turn)
            own = slice(head * width, (head + 1) * width)
            columns[:, own] = columns[:, own] @ turn
    _set(attention.qkv, rows, bias)
    _set(attention.proj, columns)


def _turn_rows(rows: Tensor, bias: Tensor | None, part: slice, turn: Tensor) -> None:
    rows[part] = turn.T @ rows[part]
    if bias is not None:
        bias[part] = bias[part] @ turn
