"""Frozen entries of one attention site: which they are, their constants, and how they are merged into the maps.

Shapes: W windows per image, H heads, Q queries, K keys; n frozen entries in the order of the mask.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .quantize.quantizers import Levels, log_codes, log_values, zero_code
from .quantize.ranges import log_step

Renormalize = Literal["none", "mass", "renorm"]
Order = Literal["quantize-merge", "merge-quantize"]


class FrozenMaps(nn.Module):
    """Merges constants into attention maps (equation 15 of EAM), with the options of renormalization and order.

    Buffers: `mask` bool [W, H, Q, K]; with `bits` below 32 `codes` int16 [n] on the log-sqrt2 grid of `step` [H];
    with 32 bits `values` float32 [n]. The dense constants are derived from them alone.
    """

    mask: Tensor
    values: Tensor
    codes: Tensor
    step: Tensor
    constants: Tensor

    def __init__(
        self,
        mask: Bool[Tensor, "windows heads queries keys"],
        allowed: Bool[Tensor, "windows queries keys"] | None,
        bits: int,
        levels: Levels,
        renormalize: Renormalize = "none",
        order: Order = "quantize-merge",
    ):
        super().__init__()
        self.bits = bits
        self.levels: Levels = levels
        self.renormalize: Renormalize = renormalize
        self.order: Order = order
        count = int(mask.sum())
        self.register_buffer("mask", mask)
        if bits == 32:
            self.register_buffer("values", torch.zeros(count))
        else:
            self.register_buffer("codes", torch.zeros(count, dtype=torch.int16))
            self.register_buffer("step", torch.ones(mask.shape[1]))
        self.register_buffer("constants", torch.zeros(mask.shape), persistent=False)
        self._group_heads(allowed)

    def _group_heads(self, allowed: Tensor | None) -> None:
        """Sort the heads into wholly frozen ones, partly frozen ones, and the others."""
        reachable = self.mask if allowed is None else self.mask | ~allowed[:, None]
        whole = reachable.all(dim=(0, 2, 3))
        some = self.mask.any(dim=3).any(dim=2).any(dim=0)
        heads = range(self.mask.shape[1])
        self.constant_heads = [head for head in heads if whole[head]]
        self.partial_heads = [head for head in heads if some[head] and not whole[head]]
        self.other_heads = [head for head in heads if not some[head]]

    def set_values(self, values: Float[Tensor, "windows heads queries keys"], step: Float[Tensor, heads] | None) -> None:
        """Take the constants from dense values; below 32 bits they go to the nearest level of the grid `step`."""
        if self.bits == 32:
            self.values = values[self.mask]
        else:
            assert step is not None
            self.step = step.clone()
            self.codes = log_codes(values, step.view(1, -1, 1, 1), self.bits, self.levels)[self.mask]
        self.restore_constants()

    def restore_constants(self) -> None:
        """Derive the dense constants from what is stored (after loading)."""
        dense = torch.zeros(self.mask.shape, device=self.mask.device)
        if self.bits == 32:
            dense[self.mask] = self.values
        else:
            steps = self.step.view(1, -1, 1, 1).expand(self.mask.shape)[self.mask]
            dense[self.mask] = log_values(self.codes, steps, self.bits, self.levels)
        self.constants = dense

    def zero_entries(self) -> Bool[np.ndarray, count]:
        """Which frozen entries are stored as exactly zero."""
        stored = self.values == 0 if self.bits == 32 else self.codes == zero_code(self.bits, self.levels)
        return stored.cpu().numpy()

    def forward(
        self, maps: Float[Tensor, "rows heads_used queries keys"], quantizer: nn.Module | None, heads: list[int] | None = None
    ) -> Float[Tensor, "rows heads_used queries keys"]:
        """Merge the constants of `heads` (None: all) into their softmax maps; `quantizer` acts on the computed part.

        `none`: equation 15 as printed, rows need not sum to one. `mass`: the computed entries are scaled so that each row
        sums to one (a softmax over the unfrozen entries times what the frozen ones leave). `renorm`: the merged row is divided
        by its sum.
        """
        mask = self.mask if heads is None else self.mask[:, heads]
        constants = self.constants if heads is None else self.constants[:, heads]
        windows = mask.shape[0]
        shape = maps.shape
        if windows > 1:
            maps = maps.view(-1, windows, *shape[1:])
        if self.renormalize == "mass":
            kept = maps.masked_fill(mask, 0.0)
            left = (1.0 - constants.sum(-1, keepdim=True)).clamp_(min=0.0)
            maps = kept * (left / kept.sum(-1, keepdim=True).clamp_(min=torch.finfo(maps.dtype).tiny))
        if quantizer is not None and self.order == "quantize-merge":
            maps = quantizer(maps) if heads is None else quantizer(maps, heads)
        maps = torch.where(mask, constants, maps)
        if quantizer is not None and self.order == "merge-quantize":
            maps = quantizer(maps) if heads is None else quantizer(maps, heads)
        if self.renormalize == "renorm":
            maps = maps / maps.sum(-1, keepdim=True).clamp_(min=torch.finfo(maps.dtype).tiny)
        return maps.view(shape) if windows > 1 else maps

    def constant_maps(self, quantizer: nn.Module | None) -> Float[Tensor, "windows constant_heads queries keys"]:
        """The maps of the wholly frozen heads, which need no queries and keys."""
        maps = self.constants[:, self.constant_heads]
        if quantizer is not None and self.order == "merge-quantize":
            maps = quantizer(maps, self.constant_heads)
        if self.renormalize == "renorm":
            maps = maps / maps.sum(-1, keepdim=True).clamp_(min=torch.finfo(maps.dtype).tiny)
        return maps


def frozen_step(
    values: Float[Tensor, "windows heads queries keys"],
    mask: Bool[Tensor, "windows heads queries keys"],
    bits: int,
    levels: Levels,
    grid: Literal["layer", "head"],
    layer_step: Float[Tensor, "*heads"] | None,
) -> Float[Tensor, heads]:
    """The grid step of every head: the layer's own attention quantizer's (where heads have different bits, the head's), or one fitted to
    the head's frozen constants.

    Where the maps are not quantized (`layer_step` is None) the layer's step is fitted to all its frozen constants.
    """
    heads = mask.shape[1]
    if grid == "layer":
        if layer_step is None:
            layer_step = log_step(values[mask], bits, levels)
        return layer_step.reshape(-1).expand(heads).clone()
    steps = [log_step(values[:, head][mask[:, head]], bits, levels) if mask[:, head].any() else torch.ones(()) for head in range(heads)]
    return torch.stack(steps)
