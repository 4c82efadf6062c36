"""An attention layer of each family, some heads of which are hallucinated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitfrost.configs import Hallucinate
from vitfrost.methods.hallucination.maps import HeadHallucination
from vitfrost.vit.attention import FusedAttention, MapAttention
from vitfrost.vit.compat import import_timm
from vitfrost.vit.reduced_attention import PooledAttention, PyramidAttention
from vitfrost.vit.sites import AttentionSite

import_timm()
from timm.layers import Attention  # noqa: E402  (timm must be imported through the guard)
from timm.models.nextvit import EfficientAttention  # noqa: E402
from timm.models.pvt_v2 import Attention as SpatialAttention  # noqa: E402

HEADS, DIM, GRID, PREFIX = 5, 3, (4, 6), 1
WIDTH, PATCHES = HEADS * DIM, 24


HALF = -(-HEADS // 2)


def hallucinated(kind: str, options: Hallucinate, sources: list[int] | None = None, computed: int = HALF) -> MapAttention:
    """`kind`: `fused` (25 tokens with a class token), `pyramid` (24 tokens, 2 x 3 keys) or `means` (24 tokens, 6 keys, no grid)."""
    prefix = PREFIX if kind == "fused" else 0
    keys, key_grid = {"fused": (PATCHES + PREFIX, None), "pyramid": (6, (2, 3)), "means": (6, None)}[kind]
    site = AttentionSite("attn", 0, HEADS, DIM, WIDTH, PATCHES + prefix, keys, prefix, GRID, key_grid=key_grid)
    module: Any
    if kind == "fused":
        module = FusedAttention(Attention(WIDTH, HEADS, qkv_bias=True), site, scale_queries_first=False)
    elif kind == "pyramid":
        module = PyramidAttention(SpatialAttention(WIDTH, HEADS, sr_ratio=2), site)
    else:
        module = PooledAttention(EfficientAttention(WIDTH, head_dim=DIM, sr_ratio=2), site)
    if computed == HEADS:
        return module
    sources = [j % computed for j in range(HEADS - computed)] if sources is None else sources
    module.hallucinate(HeadHallucination(computed, sources, options, prefix_tokens=prefix, key_grid=site.grid_of_keys))
    module.keep_logits(range(HEADS), computed)
    return module


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def attention() -> Callable[..., MapAttention]:
    """The function `hallucinated`."""
    return hallucinated


@pytest.fixture
def run() -> Callable[[MapAttention], torch.Tensor]:
    """A function that gives a layer tokens, and what it takes beside them."""

    def outputs(module: MapAttention, seed: int = 1) -> torch.Tensor:
        example = next(module.parameters())
        x = drawn(seed, 2, module.site.queries, WIDTH).to(example)
        return module(x, GRID) if isinstance(module, PyramidAttention) else module(x)

    return outputs
