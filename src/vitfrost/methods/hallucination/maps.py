"""The maps of all heads of a layer out of the logits of some.

Shapes: B rows of the batch, g heads with logits, q hallucinated heads, N queries, M keys.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...configs import Hallucinate
from .mix import HeadMix, MapConvolution, renormalize


class HeadHallucination(nn.Module):
    """S: the logits of g heads. G = Mix(S), G = G + Conv(G); maps = softmax(concat(S, G)) over the keys.

    After the softmax (option `space`) Mix and Conv act on softmax(S) instead, and rows are made to sum to one again. The maps are
    materialized, so fused attention is lost. Submodules: `mix`, and `convolution` (None without one).

    `sources[j]`: which of the g heads hallucinated head j starts as a copy of. `key_grid`: the patch grid of the keys behind the
    `prefix_tokens`. Raises VitfrostError where the options need a grid that is not given.
    """

    def __init__(
        self,
        logit_heads: int,
        sources: Sequence[int],
        options: Hallucinate,
        *,
        prefix_tokens: int = 0,
        key_grid: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.options = options
        self.mix = HeadMix(logit_heads, sources, options)
        self.convolution = MapConvolution(len(sources), options, prefix_tokens, key_grid) if options.kernel else None

    def at(self, grid: tuple[int, int]) -> HeadHallucination:
        """The same for another patch grid of the keys, with the same weights."""
        if self.convolution is None or not self.convolution.on_grid:
            return self
        made = copy.copy(self)
        made.__dict__["_modules"] = self._modules | {"convolution": self.convolution.at(grid)}
        return made

    def hallucinate(self, maps: Float[Tensor, "rows logit_heads queries keys"]) -> Float[Tensor, "rows hallucinated queries keys"]:
        """Mix across heads, then the residual convolution, of logits or maps."""
        mixed: Tensor = self.mix(maps)
        return mixed if self.convolution is None else self.convolution(mixed)

    def forward(self, logits: Float[Tensor, "rows logit_heads queries keys"]) -> Float[Tensor, "rows heads queries keys"]:
        """Attention maps of all heads, those with logits first; every row sums to one."""
        if self.options.space == "logits":
            return torch.softmax(torch.cat([logits, self.hallucinate(logits)], dim=1), dim=-1)
        maps = torch.softmax(logits, dim=-1)
        return torch.cat([maps, renormalize(self.hallucinate(maps))], dim=1)
