"""What layers cost as the paper counts it; the package counts it on models instead."""

from __future__ import annotations

from vitfrost.configs import Hallucinate
from vitfrost.methods.hallucination.cost import generation_macs


def attention_parameters(
    width: int, heads: int, computed: int, head_dim: int, options: Hallucinate, qkv_bias: bool = True, proj_bias: bool = True
) -> int:
    """Parameters of the projections, the mix and the convolution.

    With g computed and q hallucinated heads of width D: (2g + h) d D + h D d (+ biases), plus g q + q (linear mix with its
    bias; q + q pair-wise, nothing for copies) plus q k^2. That is 2 d q D (+ 2 q D) fewer projections than before.
    """
    hallucinated = heads - computed
    inputs = (2 * computed + heads) * head_dim
    projections = width * inputs + heads * head_dim * width + (inputs if qkv_bias else 0) + (width if proj_bias else 0)
    mix = {"linear": computed * hallucinated, "pair": hallucinated, "copy": 0}[options.inter_map]
    return projections + mix + (hallucinated if options.has_bias else 0) + hallucinated * options.kernel**2


def attention_macs(
    queries: int, keys: int, width: int, heads: int, computed: int, head_dim: int, options: Hallucinate, prefix_tokens: int = 0
) -> int:
    """Multiply-accumulates: N d D (g + h) + M d D (g + h) projections, N M D (g + h) products, and what hallucination adds.

    What reduces the keys is not counted.
    """
    used = (computed + heads) * head_dim
    added = generation_macs(queries, keys, computed, heads - computed, options, prefix_tokens)
    return (queries + keys) * width * used + queries * keys * used + added


def feed_forward_parameters(width: int, hidden: int, rank: int | None = None) -> int:
    """d m d + m d + r (m d + d) + d with the merged factors; d m d for the second projection where `rank` is None."""
    second = hidden * width if rank is None else rank * (hidden + width)
    return width * hidden + hidden + second + width
