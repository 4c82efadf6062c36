"""Between maps: a mix across heads. Within a map: a residual depthwise convolution.

Shapes: B rows of the batch, g computed heads, q hallucinated heads, N queries, M keys.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs import Hallucinate
from ...errors import VitfrostError

# A softmax over weights never reaches a copy; after the softmax a copy starts as this share of its source.
COPY_SHARE = 0.99


class HeadMix(nn.Module):
    """Every hallucinated map out of the computed ones; starts as a copy of head `sources[j]` for hallucinated head j.

    Parameters: `weight` [q, g] (`linear`) or [q] (`pair`), none for `copy`; `bias` [q] where the options have one.
    Buffer `sources` [q] (`pair`, `copy`). After the softmax the mix is convex: softmax(weight) over the g heads.
    """

    sources: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, computed: int, sources: Sequence[int], options: Hallucinate):
        super().__init__()
        if not all(0 <= source < computed for source in sources):
            raise ValueError(f"sources {list(sources)} are not among the {computed} computed heads")
        self.computed, self.options, count = computed, options, len(sources)
        linear = options.inter_map == "linear"
        self.register_buffer("sources", None if linear else torch.zeros(count, dtype=torch.int64))
        shape = {"linear": (count, computed), "pair": (count,), "copy": None}[options.inter_map]
        self.weight = None if shape is None else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(count)) if options.has_bias else None
        self.set_mix(F.one_hot(torch.tensor(sources), computed).double())

    @torch.no_grad()
    def set_mix(self, mix: Float[Tensor, "hallucinated computed"]) -> None:
        """Start from a given matrix, e.g. that of `fit.fit_mix`, as closely as the options allow.

        `pair` keeps each row's largest entry by size, `copy` takes the head of the largest one. After the softmax negative entries
        count as zero, rows are divided by their sum, and every head keeps a small share so that it can still learn.
        """
        if self.options.inter_map != "linear":
            self.sources.copy_((mix if self.weight is None else mix.abs()).argmax(1))
            if self.weight is not None:
                self.weight.copy_(mix.gather(1, self.sources[:, None].to(mix.device))[:, 0])
            return
        assert self.weight is not None
        if self.options.space == "post-softmax":
            shares = mix.double().clamp(min=0) + torch.finfo(torch.float64).tiny
            shares = COPY_SHARE * shares / shares.sum(1, keepdim=True)
            mix = torch.log(shares + (1 - COPY_SHARE) / self.computed)
        self.weight.copy_(mix)

    def matrix(self) -> Float[Tensor, "hallucinated computed"]:
        """The mix as it is applied: convex rows after the softmax, else the weights themselves."""
        if self.options.inter_map == "linear":
            assert self.weight is not None
            return self.weight.softmax(1) if self.options.space == "post-softmax" else self.weight
        hot = F.one_hot(self.sources, self.computed)
        return hot.to(torch.get_default_dtype()) if self.weight is None else hot * self.weight[:, None]

    def forward(self, maps: Float[Tensor, "rows computed queries keys"]) -> Float[Tensor, "rows hallucinated queries keys"]:
        if self.options.inter_map == "linear":
            mixed = torch.einsum("qg,bgnm->bqnm", self.matrix(), maps)
        else:
            mixed = maps[:, self.sources]
            if self.weight is not None:
                mixed = mixed * self.weight[:, None, None]
        return mixed if self.bias is None else mixed + self.bias[:, None, None]


class MapConvolution(nn.Module):
    """Adds a depthwise convolution of each map to it; zero at the start, zero-padded at the borders.

    Parameter `weight` [q, 1, k, k]. `key_grid` is the patch grid of the keys behind the prefix tokens.
    Raises VitfrostError where the option `key-grid` has no grid, or the keys do not fill it.
    """

    def __init__(self, maps: int, options: Hallucinate, prefix_tokens: int = 0, key_grid: tuple[int, int] | None = None):
        super().__init__()
        self.on_grid, self.prefix_tokens, self.key_grid = options.intra_map == "key-grid", prefix_tokens, key_grid
        self.first_row = prefix_tokens if options.prefix == "skip" else 0
        self.first_column = prefix_tokens if self.on_grid else self.first_row
        if self.on_grid and key_grid is None:
            raise VitfrostError("intra_map key-grid needs the patch grid of the keys, which this layer has not; take 3x3 or none")
        self.weight = nn.Parameter(torch.zeros(maps, 1, options.kernel, options.kernel))

    def at(self, grid: tuple[int, int]) -> MapConvolution:
        """The same for another patch grid of the keys, with the same weights."""
        made = copy.copy(self)
        made.key_grid = grid
        return made

    def forward(self, maps: Float[Tensor, "rows hallucinated queries keys"]) -> Float[Tensor, "rows hallucinated queries keys"]:
        row, column = self.first_row, self.first_column
        inner = maps[:, :, row:, column:]
        if self.on_grid:
            assert self.key_grid is not None
            height, width = self.key_grid
            if inner.shape[-1] != height * width:
                raise VitfrostError(
                    f"{inner.shape[-1]} keys do not fill a patch grid of {height} x {width}; give the layer its grid of keys"
                )
            change = self._convolve(inner.transpose(1, 2).reshape(-1, maps.shape[1], height, width))
            change = change.reshape(maps.shape[0], inner.shape[2], maps.shape[1], -1).transpose(1, 2)
        else:
            change = self._convolve(inner)
        return maps + F.pad(change, (column, 0, row, 0))

    def _convolve(self, maps: Float[Tensor, "rows hallucinated height width"]) -> Float[Tensor, "rows hallucinated height width"]:
        return F.conv2d(maps, self.weight, padding=self.weight.shape[-1] // 2, groups=self.weight.shape[0])


def renormalize(maps: Float[Tensor, "rows heads queries keys"]) -> Float[Tensor, "rows heads queries keys"]:
    """Rows without negative entries that sum to one; a row with nothing left becomes uniform."""
    kept = maps.clamp(min=0)
    total = kept.sum(-1, keepdim=True)
    tiny = torch.finfo(maps.dtype).tiny
    return torch.where(total > tiny, kept / total.clamp(min=tiny), 1 / maps.shape[-1])
