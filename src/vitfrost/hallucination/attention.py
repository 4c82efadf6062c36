"""Hallucinated multi-head self-attention as a module, from scratch or from the weights of an attention layer.

Shapes: B rows of the batch, h heads, g of them computed, q = h - g hallucinated, N queries, M keys, d width, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import VitfrostError
from .mix import HeadMix, MapConvolution, renormalise
from .options import HallucinationOptions


class HallucinatedAttention(nn.Module):
    """Multi-head attention in which only the first g heads have queries and keys; every head has its own values.

    S = q k^T / sqrt(D) for g heads; G = Mix(S), G = G + Conv(G) for the others; A = softmax(concat(S, G)) over the keys;
    y = proj(concat_heads(A v)). After the softmax (option `space`) Mix and Conv act on softmax(S) instead.

    Layers: `qkv` d -> (2g + h) D, or, where keys and values come from another input (`separate_keys`), `q` d -> g D and
    `kv` d -> (g + h) D; `proj` h D -> out_width. `mix` and `convolution` are None where nothing is hallucinated.
    The maps are materialised, so fused attention is lost (except where all heads are computed).

    `sources[j]`: the computed head that hallucinated head g + j starts as a copy of (default: j modulo g).
    Raises VitfrostError where the options do not fit the number of heads or need a grid that is not given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        options: HallucinationOptions,
        *,
        sources: Sequence[int] | None = None,
        prefix_tokens: int = 0,
        key_grid: tuple[int, int] | None = None,
        separate_keys: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        out_width: int | None = None,
    ):
        super().__init__()
        self.heads, self.head_dim, self.options = heads, head_dim, options
        self.computed = options.computed_heads(heads)
        self.separate_keys = separate_keys
        hallucinated = heads - self.computed
        if separate_keys:
            self.q = nn.Linear(width, self.computed * head_dim, qkv_bias)
            self.kv = nn.Linear(width, (self.computed + heads) * head_dim, qkv_bias)
        else:
            self.qkv = nn.Linear(width, (2 * self.computed + heads) * head_dim, qkv_bias)
        self.proj = nn.Linear(heads * head_dim, out_width or width, proj_bias)
        sources = [j % self.computed for j in range(hallucinated)] if sources is None else list(sources)
        if len(sources) != hallucinated:
            raise ValueError(f"{len(sources)} sources for {hallucinated} hallucinated heads")
        convolves = hallucinated > 0 and options.kernel > 0
        self.mix = HeadMix(self.computed, sources, options) if hallucinated else None
        self.convolution = MapConvolution(hallucinated, options, prefix_tokens, key_grid) if convolves else None

    @classmethod
    def from_attention(
        cls,
        qkv_weight: Float[Tensor, "three_inner width"],
        qkv_bias: Float[Tensor, " three_inner"] | None,
        proj_weight: Float[Tensor, "out_width inner"],
        proj_bias: Float[Tensor, " out_width"] | None,
        heads: int,
        options: HallucinationOptions,
        *,
        order: Sequence[int] | None = None,
        sources: Sequence[int] | None = None,
        mix: Float[Tensor, "hallucinated computed"] | None = None,
        prefix_tokens: int = 0,
        key_grid: tuple[int, int] | None = None,
        separate_keys: bool = False,
    ) -> HallucinatedAttention:
        """Take over the weights of an attention layer, fused as timm's (rows: all queries, all keys, all values).

        `order`: the original heads in their new order, computed ones first (`fit.HeadChoice.order`; default: as they are);
        values and the columns of the output projection follow. `mix`: a matrix to start from (`fit.fit_mix`) instead of copies.
        The result has the weights' dtype and device.
        Raises VitfrostError where the weights' rows are not three times `heads` heads, ValueError where `order` is no permutation.
        """
        inner = qkv_weight.shape[0] // 3
        if qkv_weight.shape[0] % 3 or inner % heads or proj_weight.shape[1] != inner:
            shapes = f"{tuple(qkv_weight.shape)} and {tuple(proj_weight.shape)}"
            raise VitfrostError(f"attention weights of shapes {shapes} do not fit {heads} heads; give the layer's own number of heads")
        order = list(range(heads)) if order is None else list(order)
        if sorted(order) != list(range(heads)):
            raise ValueError(f"order {order} is not a permutation of {heads} heads")
        made = cls(qkv_weight.shape[1], heads, inner // heads, options, sources=sources, prefix_tokens=prefix_tokens, key_grid=key_grid,
                   separate_keys=separate_keys, qkv_bias=qkv_bias is not None, proj_bias=proj_bias is not None,
                   out_width=proj_weight.shape[0])  # fmt: skip
        made = made.to(qkv_weight)
        kept = order[: made.computed]
        channels = torch.arange(inner, device=qkv_weight.device).view(heads, -1)
        rows = torch.cat([channels[kept], channels[kept] + inner, channels[order] + 2 * inner]).flatten()
        with torch.no_grad():
            for name, values in (("weight", qkv_weight), ("bias", qkv_bias)):
                if values is None:
                    continue
                values = values[rows]
                if separate_keys:
                    queries = len(made.q.weight)
                    made.q.get_parameter(name).copy_(values[:queries])
                    made.kv.get_parameter(name).copy_(values[queries:])
                else:
                    made.qkv.get_parameter(name).copy_(values)
            made.proj.weight.copy_(proj_weight[:, channels[order].flatten()])
            if proj_bias is not None:
                made.proj.bias.copy_(proj_bias)
        if mix is not None and made.mix is not None:
            made.mix.set_mix(mix)
        return made

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, g, N, D], keys [B, g, M, D] and values [B, h, M, D]."""
        if self.separate_keys:
            joint = (self.q(x), *self.kv(x if context is None else context).tensor_split([self.computed * self.head_dim], dim=-1))
        else:
            if context is not None:
                raise ValueError("keys and values of this attention come from its own input; make it with separate_keys")
            cut = self.computed * self.head_dim
            joint = self.qkv(x).tensor_split([cut, 2 * cut], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in joint)
        return q, k, v

    def maps(
        self, q: Float[Tensor, "rows computed queries D"], k: Float[Tensor, "rows computed keys D"]
    ) -> Float[Tensor, "rows heads queries keys"]:
        """Attention maps of all heads, computed ones first; every row sums to one."""
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        if self.options.space == "logits":
            return torch.softmax(torch.cat([logits, self.hallucinate(logits)], dim=1), dim=-1)
        maps = torch.softmax(logits, dim=-1)
        return torch.cat([maps, renormalise(self.hallucinate(maps))], dim=1)

    def hallucinate(self, maps: Float[Tensor, "rows computed queries keys"]) -> Float[Tensor, "rows hallucinated queries keys"]:
        """Mix across heads, then the residual convolution, of logits or maps."""
        if self.mix is None:
            return maps[:, :0]
        mixed: Tensor = self.mix(maps)
        return mixed if self.convolution is None else self.convolution(mixed)

    def forward(
        self, x: Float[Tensor, "rows queries width"], context: Float[Tensor, "rows keys width"] | None = None
    ) -> Float[Tensor, "rows queries out_width"]:
        """`context`: what keys and values are made of, e.g. the spatially reduced tokens (`separate_keys` only)."""
        q, k, v = self.project(x, context)
        mixed = F.scaled_dot_product_attention(q, k, v) if self.mix is None else self.maps(q, k) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out
