"""One flat test over architectures: sites are right, and with every head computed the outputs equal timm's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.configs import FreezeEntries, Quantize
from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.model import Model
from vitfrost.vit.families import allowed_pairs, find_sites, install_map_attention
from vitfrost.vit.load import create_model
from vitfrost.vit.stream import ResidualStream

SMALL_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2}
SMALL_TINY: dict[str, Any] = {"embed_dims": (16, 24, 32), "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_sizes": (4, 4, 4)}
SMALL_HIERA: dict[str, Any] = {"embed_dim": 16, "stages": (1, 1, 2, 1)}
# name, options, (windows, heads, tokens) of the first site, number of sites
ARCHITECTURES: list[tuple[str, dict[str, Any], tuple[int, int, int], int]] = [
    ("vit_tiny_patch16_224", {"depth": 3}, (1, 3, 197), 3),
    ("vit_small_patch16_224", {"depth": 2}, (1, 6, 197), 2),
    ("vit_base_patch16_224", {"depth": 2}, (1, 12, 197), 2),
    ("vit_tiny_patch16_384", {"depth": 2}, (1, 3, 577), 2),
    ("deit_tiny_patch16_224", {"depth": 2}, (1, 3, 197), 2),
    ("deit_tiny_patch16_224", {"depth": 2, "image_size": (96, 160)}, (1, 3, 61), 2),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, (1, 3, 198), 2),
    ("deit3_small_patch16_224", {"depth": 2}, (1, 6, 197), 2),
    ("vit_small_patch14_reg4_dinov2", {"depth": 2, "image_size": 112}, (1, 6, 69), 2),
    ("vit_medium_patch16_gap_240", {"depth": 2}, (1, 8, 225), 2),
    ("test_vit", {}, (1, 2, 101), 6),
    ("test_vit2", {}, (1, 2, 101), 8),
    ("test_vit3", {}, (1, 3, 101), 9),
    ("test_vit4", {}, (1, 3, 101), 9),
    ("vitfrost_digits", {}, (1, 4, 65), 6),
    ("swin_tiny_patch4_window7_224", {**SMALL_SWIN, "image_size": 56}, (4, 2, 49), 4),
    ("swin_tiny_patch4_window7_224", {**SMALL_SWIN, "image_size": 64}, (9, 2, 49), 4),  # windows that need padding
    ("swin_small_patch4_window7_224", {**SMALL_SWIN, "image_size": 64, "window_size": 4}, (16, 2, 16), 4),
    ("swin_tiny_patch4_window7_224", {**SMALL_SWIN, "image_size": (56, 112)}, (8, 2, 49), 4),
    ("eva_giant_patch14_224", {**SMALL, "image_size": 56}, (1, 2, 17), 2),  # biases of queries and values apart, no rotation
    ("eva02_tiny_patch14_224", {"depth": 2, "image_size": 56}, (1, 3, 17), 2),  # rotary positions, SwiGLU
    ("eva02_base_patch14_448", {**SMALL, "image_size": 56}, (1, 2, 17), 2),  # three projections, norms inside
    ("vit_small_patch16_dinov3", {**SMALL, "image_size": (64, 96)}, (1, 2, 29), 2),  # registers, LayerScale
    ("vit_small_plus_patch16_dinov3", {**SMALL, "image_size": 64}, (1, 2, 21), 2),  # packed SwiGLU
    ("vit_pe_core_tiny_patch16_384", {"depth": 2, "image_size": 64}, (1, 3, 17), 2),  # pooling by attention
    ("vit_pe_lang_large_patch14_448", {**SMALL, "image_size": 56}, (1, 2, 17), 2),
    ("vit_small_patch16_rope_mixed_ape_224", {**SMALL, "image_size": (64, 96)}, (1, 2, 25), 2),  # each head its own rotation
    ("beit_base_patch16_224", {**SMALL, "image_size": 64}, (1, 2, 17), 2),
    ("beitv2_large_patch16_224", {**SMALL, "image_size": (64, 96)}, (1, 2, 25), 2),
    ("vit_relpos_small_patch16_224", {**SMALL, "image_size": 64}, (1, 2, 16), 2),
    ("vit_srelpos_small_patch16_224", {**SMALL, "image_size": 64}, (1, 2, 16), 2),  # one bias for all layers
    ("vit_relpos_base_patch16_clsgap_224", {**SMALL, "image_size": (64, 96)}, (1, 2, 25), 2),
    ("vit_relpos_medium_patch16_rpn_224", {**SMALL, "image_size": 64}, (1, 2, 16), 2),  # norms behind the layers
    ("swinv2_tiny_window8_256", {**SMALL_SWIN, "image_size": 64}, (4, 2, 64), 4),
    ("swinv2_tiny_window8_256", {**SMALL_SWIN, "image_size": (72, 64)}, (6, 2, 64), 4),  # windows that need padding
    ("maxvit_rmlp_pico_rw_256", {"depths": (1, 1, 2, 1), "image_size": 64}, (64, 1, 4), 10),  # windows, and grids of positions apart
    ("maxxvitv2_nano_rw_256", {"image_size": (64, 96)}, (64, 3, 6), 7),
    ("coatnet_nano_cc_224", {"depths": (1, 1, 2, 2), "image_size": 64}, (1, 8, 16), 2),  # convolutions in stages of attention
    ("coatnext_nano_rw_224", {"depths": (1, 1, 2, 1), "image_size": (64, 96)}, (1, 4, 24), 3),
    ("tiny_vit_5m_224", {**SMALL_TINY, "image_size": 64}, (4, 2, 16), 3),  # a last stage of one window
    ("tiny_vit_5m_224", {**SMALL_TINY, "image_size": (72, 96)}, (9, 2, 16), 3),  # windows that need padding
    ("hiera_tiny_224", {**SMALL_HIERA, "image_size": (64, 96)}, (6, 1, 64), 5),  # windows, then the whole map; pooled queries
    ("hiera_small_abswin_256", {**SMALL_HIERA, "image_size": 64}, (4, 1, 64), 5),
    ("qwen3_vit_88m", {**SMALL, "embed_dim": 64, "image_size": 64}, (1, 2, 16), 2),
    ("qwen3_vit_88m_enc", {**SMALL, "embed_dim": 64, "image_size": (64, 96)}, (1, 2, 24), 2),
    ("aimv2_large_patch14_224", {**SMALL, "image_size": 56}, (1, 2, 16), 2),  # SwiGLU, RMSNorm
    ("vit_giant_patch14_dinov2", {**SMALL, "image_size": 56}, (1, 2, 17), 2),
    ("beit3_base_patch16_224", {**SMALL, "image_size": 64}, (1, 2, 17), 2),  # a norm inside the feed-forward block
    ("vit_base_patch16_rpn_224", {**SMALL, "image_size": 64}, (1, 2, 16), 2),
    ("vitamin_small_224", {"depth": 1, "image_size": 64}, (1, 6, 16), 1),  # convolutions before, GeGLU
    ("vit_base_mci_224", {"depth": 1, "image_size": 64}, (1, 12, 17), 1),
    ("vit_small_r26_s32_224", {"depth": 1, "image_size": 64}, (1, 6, 5), 1),
    ("vit_base_patch16_siglip_224", {**SMALL, "image_size": 64}, (1, 2, 16), 2),
    ("vit_base_patch16_clip_224", {**SMALL, "image_size": 64}, (1, 2, 17), 2),
]


@pytest.mark.parametrize(("name", "options", "first", "count"), ARCHITECTURES)
@torch.no_grad()
def test_sites_and_parity_with_timm(name: str, options: dict[str, Any], first: tuple[int, int, int], count: int, lively: Any) -> None:
    options = dict(options)
    loaded = Model.open(name, weights="random", image_size=options.pop("image_size", None), options=options)
    lively(loaded.module, torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(1)))
    sites = find_sites(loaded.module)
    assert len(sites.attention) == count
    assert (sites.attention[0].windows, sites.attention[0].heads, sites.attention[0].queries) == first
    assert sites.image_size == loaded.image_size
    pixels = torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    expected = loaded.module(pixels)
    ours = copy.deepcopy(loaded.module)
    modules = install_map_attention(ours)
    assert ours.state_dict().keys() == loaded.module.state_dict().keys()
    assert float((ours(pixels) - expected).abs().max()) < 1e-5  # fused
    stream = ResidualStream(ours)
    assert stream.names == [site.name.rpartition(".")[0] for site in sites.feed_forward]
    assert torch.equal(stream.leave(stream.run(stream.enter(pixels))), ours(pixels))
    seen: dict[str, tuple[int, ...]] = {}
    sums: list[float] = []
    for site_name, module in modules.items():

        def observe(maps: torch.Tensor, values: torch.Tensor, site_name: str = site_name) -> None:
            seen[site_name] = tuple(maps.shape)
            sums.append(float((maps.sum(-1) - 1).abs().max()))

        module.observe(observe)
    assert float((ours(pixels) - expected).abs().max()) < 1e-5  # explicit maps
    assert max(sums) < 1e-5
    for site in sites.attention:
        assert seen[site.name] == (2 * site.windows, site.heads, site.queries, site.keys)


def test_state_dict_keys_survive_the_replacement() -> None:
    model = Model.open("test_vit", weights="random").module
    before = set(model.state_dict())
    install_map_attention(model)
    assert set(model.state_dict()) == before
    assert install_map_attention(model).keys() == {f"blocks.{i}.attn" for i in range(6)}  # a second time changes nothing


def test_allowed_pairs_of_shifted_windows_are_what_the_softmax_lets_through() -> None:
    loaded = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=56, options=SMALL_SWIN)
    sites = find_sites(loaded.module).attention
    assert allowed_pairs(loaded.module, sites[0].name) is None
    assert sites[1].masked
    allowed = allowed_pairs(loaded.module, sites[1].name)
    assert allowed.shape == (4, 49, 49)
    modules = install_map_attention(loaded.module)
    caught: list[torch.Tensor] = []
    modules[sites[1].name].observe(lambda maps, values: caught.append(maps))
    with torch.no_grad():
        loaded.module(torch.randn(3, 3, 56, 56))
    maps = caught[0].view(3, 4, 2, 49, 49)
    assert float(maps.masked_select(~allowed[None, :, None]).max()) < 1e-20
    assert float(maps.masked_select(allowed[None, :, None]).min()) > 1e-6


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("xcit_nano_12_p16_224", {}, "channel"),
        ("cait_xxs24_224", {}, "talking-heads"),
        ("naflexvit_base_patch16_gap", {}, "NaFlex"),
        ("resnet18", {}, "not a transformer"),
        ("test_convnext", {}, "not a transformer"),
        ("vit_pwee_patch16_reg1_gap_256", {"depth": 1}, "ParallelScalingBlock"),
        ("vit_dwee_patch16_reg1_gap_256", {"depth": 1}, "DiffAttention"),
        ("maxvit_tiny_pm_256", {"depths": (1, 1, 1, 1)}, "ParallelMaxxVitBlock; only MaxViT's blocks"),
        ("test_coatnet", {"image_size": 80}, "do not fit images of 80 x 80 px; give multiples of 32"),
        ("vit_large_patch16_sapiens2", {"depth": 1, "num_kv_heads": 8}, "grouped-query attention"),
    ],
)
def test_unsupported_models_are_refused_in_one_line_that_names_why(name: str, options: dict[str, Any], named: str) -> None:
    model = create_model(name, **options)
    with pytest.raises(UnsupportedModel, match=named) as caught:
        find_sites(model)
    assert "\n" not in str(caught.value)


def test_gated_attention_is_refused() -> None:
    from timm.layers import Attention

    model = create_model("test_vit")
    model.blocks[1].attn = Attention(64, num_heads=2, gated=True)
    with pytest.raises(UnsupportedModel, match=r"blocks\.1\.attn is gated"):
        find_sites(model)


@torch.no_grad()
def test_query_and_key_norms_are_kept() -> None:
    loaded = Model.open("test_vit", weights="random", options={"qk_norm": True})
    pixels = torch.randn(2, 3, 160, 160)
    expected = loaded.module(pixels)
    install_map_attention(loaded.module)
    assert float((loaded.module(pixels) - expected).abs().max()) < 1e-5


@torch.no_grad()
def test_nothing_is_dropped_in_evaluation() -> None:
    loaded = Model.open("test_vit", weights="random", options={"attn_drop_rate": 0.5})
    pixels = torch.randn(2, 3, 160, 160)
    expected = loaded.module(pixels)
    install_map_attention(loaded.module)
    assert float((loaded.module(pixels) - expected).abs().max()) < 1e-5


def test_a_mask_from_the_caller_is_not_ignored_silently() -> None:
    model = Model.open("test_vit", weights="random").module
    module = install_map_attention(model)["blocks.0.attn"]
    with pytest.raises(ValueError, match="no caller-given mask"):
        module(torch.randn(1, 101, 64), attn_mask=torch.zeros(101, 101))


def test_images_of_one_channel_are_refused_where_the_model_is_opened() -> None:
    for opened in (
        lambda: Model.open("test_vit", weights="random", options={"in_chans": 1}),
        lambda: Model.of(create_model("test_vit", in_chans=1)),
    ):
        with pytest.raises(VitfrostError, match="reads images of 1 channel, and pictures are read as RGB"):
            opened()


def test_patches_that_are_no_squares_are_refused() -> None:
    """Statistics take a grid of 8 x 32 over a square image for 16 x 16."""
    with pytest.raises(UnsupportedModel, match="patches are of 32 x 8 px; only square ones"):
        find_sites(create_model("test_vit", 256, patch_size=(32, 8)))


@torch.no_grad()
def test_any_image_size_until_entries_are_frozen(pictures: Path) -> None:
    """Frozen heads go along (tests/vit/test_grid_seen.py)."""
    model = Model.open("test_vit", weights="random", options={"dynamic_img_size": True, "depth": 1})
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=2), progress=False)
    larger = torch.zeros(1, 3, 192, 96)
    unchanged = vitfrost.compress(model, vitfrost.plan(statistics, Quantize(32, 32)))
    assert torch.allclose(unchanged(larger), model(larger), atol=1e-5)
    plan = vitfrost.plan(statistics, FreezeEntries(0.5, bits=32), Quantize(32, 32))
    frozen = vitfrost.compress(model, plan, statistics=statistics)
    frozen(torch.zeros(1, 3, *model.image_size))
    with pytest.raises(VitfrostError, match=r"frozen maps or windows of 101 tokens .*, and this image has 73 .*; freeze entries"):
        frozen(larger)
