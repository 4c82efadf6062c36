"""Multiply-accumulates that make hallucinated maps. Formulas only.

Multiply-accumulates cover matrix products and convolutions, per image.
"""

from __future__ import annotations

from ...configs import Hallucinate


def generation_macs(queries: int, keys: int, logit_heads: int, hallucinated: int, options: Hallucinate, prefix_tokens: int = 0) -> int:
    """Multiply-accumulates that make the maps of q hallucinated heads of those of g others.

    N M g q (linear mix; N M q pair-wise, nothing for copies) plus q k^2 per entry that the convolution visits: all N M of them
    less the rows and columns of `prefix_tokens` that the options leave out.
    """
    mix = {"linear": logit_heads * hallucinated, "pair": hallucinated, "copy": 0}[options.inter_map]
    rows = queries - (prefix_tokens if options.prefix == "skip" else 0)
    columns = keys - (prefix_tokens if options.prefix == "skip" or options.intra_map == "key-grid" else 0)
    return queries * keys * mix + rows * columns * hallucinated * options.kernel**2
