"""Next-ViT: sites against a run at any image size, keys that are means of consecutive tokens, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.model import Model
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model

from ..shapes import shapes_only


@pytest.fixture(autouse=True)
def without_storage() -> Iterator[None]:
    """timm builds its Next-ViTs at full width only; on the meta device they cost nothing."""
    with shapes_only():
        yield


def test_published_sizes() -> None:
    sites = find_sites(create_model("nextvit_small"))
    assert sites.family == "nextvit"
    found = [(site.name, site.heads, site.head_dim, site.width, site.queries, site.keys, site.grid) for site in sites.attention]
    assert found == [
        ("stages.1.blocks.3.e_mhsa", 6, 32, 192, 784, 49, (28, 28)),
        ("stages.2.blocks.4.e_mhsa", 12, 32, 384, 196, 49, (14, 14)),
        ("stages.2.blocks.9.e_mhsa", 12, 32, 384, 196, 49, (14, 14)),
        ("stages.3.blocks.2.e_mhsa", 24, 32, 768, 49, 49, (7, 7)),
    ]
    assert [site.key_grid for site in sites.attention] == [None] * 4
    convolution = [(site.width, site.hidden, site.tokens) for site in sites.feed_forward if site.block == "convolution"]
    assert convolution == [(96, 288, 3136)] * 3 + [(192, 576, 784)] * 3 + [(384, 1152, 196)] * 8 + [(768, 2304, 49)] * 2
    transformer = [(site.width, site.hidden, site.tokens) for site in sites.feed_forward if site.block == "transformer"]
    assert transformer == [(256, 512, 784)] + [(512, 1024, 196)] * 2 + [(1024, 2048, 49)]
    assert [site.index for site in sites.feed_forward] == list(range(20))


@pytest.mark.parametrize(("name", "attention", "blocks"), [("nextvit_base", 6, 30), ("nextvit_large", 8, 40)])
def test_deeper_ones_have_more_groups_of_five_in_the_third_stage(name: str, attention: int, blocks: int) -> None:
    sites = find_sites(create_model(name))
    assert (len(sites.attention), len(sites.feed_forward)) == (attention, blocks)


@settings(max_examples=12)
@given(image_size=st.tuples(st.integers(32, 150), st.integers(32, 150)))
def test_sites_are_what_a_run_shows_at_any_image_size(image_size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = create_model("nextvit_small", image_size, num_classes=3).eval()
        sites = find_sites(model)
        seen: dict[str, tuple[int, ...]] = {}
        for site in sites.attention:
            for part in ("q", "k"):
                layer = model.get_submodule(f"{site.name}.{part}")
                layer.register_forward_hook(lambda _, __, out, key=f"{site.name}.{part}": seen.update({key: tuple(out.shape)}))
        for block in sites.feed_forward:
            layer = model.get_submodule(f"{block.name}.fc1")
            layer.register_forward_hook(lambda _, __, out, key=block.name: seen.update({key: tuple(out.shape)}))
        model(torch.zeros(1, 3, *image_size))
    for site in sites.attention:
        assert seen[f"{site.name}.q"] == (1, site.queries, site.heads * site.head_dim)
        assert seen[f"{site.name}.k"] == (1, site.keys, site.heads * site.head_dim)
    for block in sites.feed_forward:
        assert seen[block.name][1] == block.hidden
        assert seen[block.name][2] * seen[block.name][3] == block.tokens


@torch.no_grad()
def test_keys_are_means_of_consecutive_tokens() -> None:
    """What the sites say of timm's attention is its formula: explicit maps of `queries` x `keys` give its output."""
    site = find_sites(create_model("nextvit_small", (64, 96))).attention[0]
    with torch.device("cpu"):
        from timm.models.nextvit import EfficientAttention

        torch.manual_seed(0)
        attn = EfficientAttention(site.width, head_dim=site.head_dim, sr_ratio=4).eval().double()
        x = torch.randn(2, site.queries, site.width, dtype=torch.float64)

        def heads(layer: Any, tokens: Tensor) -> Tensor:
            return layer(tokens).unflatten(-1, (site.heads, site.head_dim)).transpose(1, 2)

        means = x.reshape(2, site.keys, -1, site.width).mean(2) / (1 + attn.norm.eps) ** 0.5
        maps = (heads(attn.q, x) @ heads(attn.k, means).mT / site.head_dim**0.5).softmax(-1)
        assert maps.shape[1:] == site.maps_shape[1:]
        expected = attn.proj((maps @ heads(attn.v, means)).transpose(1, 2).flatten(2))
        assert float((attn(x) - expected).abs().max()) < 1e-12


def test_merged_normalizations_leave_the_sites_as_they_are() -> None:
    with torch.device("cpu"):
        model = Model.open("nextvit_small", weights="random", image_size=32).module
        before = find_sites(model)
        for module in model.modules():
            if hasattr(module, "reparameterize"):
                module.reparameterize()
        assert find_sites(model) == before


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(VitfrostError, match=r"8x8 px is too small: .* at stages\.1\.blocks\.3\.e_mhsa"):
        find_sites(create_model("nextvit_small", 8))


def test_unusual_parts_are_refused_by_name() -> None:
    model = create_model("nextvit_small")
    model.stages[0].blocks[1].mlp.norm = nn.BatchNorm2d(288)
    with pytest.raises(UnsupportedModel, match=r"stages\.0\.blocks\.1\.mlp is a ConvMlp"):
        find_sites(model)
    model = create_model("nextvit_small")
    model.stages[1].blocks[3].e_mhsa = nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"stages\.1\.blocks\.3\.e_mhsa is Identity"):
        find_sites(model)
    del model.pretrained_cfg
    with pytest.raises(UnsupportedModel, match="create it by its timm name"):
        find_sites(model)
