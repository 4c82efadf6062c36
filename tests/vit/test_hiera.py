"""Hiera: tokens by rows and columns against timm's own order, published sizes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitfrost.errors import UnsupportedModel
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.hiera import UnitAttention
from vitfrost.vit.load import create_model

from ..shapes import shapes_only

SMALL: dict[str, Any] = {"embed_dim": 16, "stages": (1, 1, 2, 1)}


def test_published_sizes() -> None:
    with shapes_only():
        sites = find_sites(create_model("hiera_tiny_224"))
    found = [(site.windows, site.heads, site.queries, site.keys) for site in sites.attention]
    pooled = [(49, 2, 16, 64), (49, 4, 4, 16), (1, 8, 49, 196)]
    assert found == [(49, 1, 64, 64), pooled[0], (49, 2, 16, 16), pooled[1], *[(1, 4, 196, 196)] * 6, pooled[2], (1, 8, 49, 49)]
    norms = {linear.name: linear.norm for linear in sites.linears if linear.role == "qkv"}
    assert [name for name, norm in norms.items() if norm is None] == ["blocks.1.attn.qkv", "blocks.3.attn.qkv", "blocks.10.attn.qkv"]


def test_windows_hold_tokens_by_rows_and_columns() -> None:
    """Before an attention, and behind it where queries are pooled, as timm's Reroll has them."""
    model = create_model("hiera_tiny_224", (64, 96), **SMALL)
    sites = find_sites(model).attention
    modules = install_map_attention(model)
    height, width = 16, 24
    for index, site in enumerate(sites):
        module = modules[site.name]
        assert isinstance(module, UnitAttention)
        for grid, block, places in (
            (site.key_grid or site.grid, max(index - 1, 0) if site.key_grid else index, module.taken),
            (site.grid, index, module.returned.argsort()),
        ):
            tokens = site.windows * grid[0] * grid[1]
            raster = model.reroll(torch.arange(tokens).view(1, tokens, 1), block)[0, :, :, 0]
            assert raster.shape == (height, width) or raster.shape == (height // 2, width // 2)
            windows = raster.unflatten(0, (-1, grid[0])).unflatten(2, (-1, grid[1])).transpose(1, 2)
            assert torch.equal(places, windows.flatten())
        height, width = raster.shape


def test_units_that_pooling_does_not_use_up_are_refused() -> None:
    with shapes_only():
        with pytest.raises(UnsupportedModel, match="give an image size in multiples of 32"):
            find_sites(create_model("hiera_tiny_224", 100, **SMALL))
        model = create_model("hiera_tiny_224", **SMALL)
        model.q_pool = 2
        with pytest.raises(UnsupportedModel, match="mask units of 8 x 8, which pooling does not use up"):
            find_sites(model)
        model.q_pool, model.blocks[2].attn = 3, torch.nn.Identity()
        with pytest.raises(UnsupportedModel, match=r"blocks\.2\.attn is Identity; only Hiera's own attention"):
            find_sites(model)
