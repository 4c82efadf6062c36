"""FrozenMaps against equation 15 written out, and the grouping of heads against explicit maps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.methods.frozen_entries import FrozenMaps, frozen_step
from vitfrost.methods.quantize.modules import LogQuantizer
from vitfrost.methods.quantize.quantizers import fake_log
from vitfrost.model import Model
from vitfrost.vit.families import allowed_pairs, install_map_attention

HEADS, TOKENS = 3, 11


def random_maps(seed: int, rows: int = 4, windows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(rows * windows, HEADS, TOKENS, TOKENS, generator=generator), dim=-1)


def frozen_module(
    seed: int, share: float, bits: int = 32, windows: int = 1, **options: str
) -> tuple[FrozenMaps, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(windows, HEADS, TOKENS, TOKENS, generator=generator) < share
    mean = random_maps(seed + 1, 1, windows)
    frozen = FrozenMaps(mask, None, bits, "published", **options)
    frozen.set_values(mean * mask, frozen_step(mean * mask, mask, bits, "published", "layer", torch.tensor(0.4)))
    return frozen, mask, mean


@given(st.integers(0, 999), st.floats(0.0, 1.0), st.integers(1, 3))
def test_equation_15(seed: int, share: float, windows: int) -> None:
    frozen, mask, mean = frozen_module(seed, share, windows=windows)
    maps = random_maps(seed + 2, windows=windows)
    expected = maps.view(4, windows, HEADS, TOKENS, TOKENS) * ~mask + mean * mask
    assert torch.equal(frozen(maps, None).view_as(expected), expected)


@given(st.integers(0, 999), st.floats(0.05, 0.9))
def test_mass_is_a_partial_softmax_times_what_the_frozen_entries_leave(seed: int, share: float) -> None:
    frozen, mask, mean = frozen_module(seed, share, renormalize="mass")
    logits = 2 * torch.randn(4, HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(seed)).double()
    left = 1 - (mean * mask).sum(-1, keepdim=True).double()
    expected = torch.where(mask, mean.double(), torch.softmax(logits.masked_fill(mask, -torch.inf), -1).nan_to_num() * left)
    ours = frozen(torch.softmax(logits, -1).float(), None)
    assert torch.allclose(ours.double(), expected, atol=1e-6)
    whole_rows = mask.all(-1)
    assert torch.allclose(ours.sum(-1)[:, ~whole_rows[0]], torch.ones(()), atol=1e-5)


@given(st.integers(0, 999), st.floats(0.0, 0.9))
def test_renorm_rows_sum_to_one(seed: int, share: float) -> None:
    frozen, _, _ = frozen_module(seed, share, renormalize="renorm")
    assert torch.allclose(frozen(random_maps(seed), None).sum(-1), torch.ones(()), atol=1e-5)


@given(st.integers(0, 999), st.integers(2, 8))
def test_frozen_values_lie_on_the_quantizers_grid(seed: int, bits: int) -> None:
    frozen, mask, mean = frozen_module(seed, 0.5, bits)
    expected = fake_log(mean, torch.tensor(0.4), bits, "published")
    assert torch.allclose(frozen.constants[mask], expected[mask], rtol=1e-6)
    assert float(frozen.constants[~mask].abs().sum()) == 0.0


def test_on_one_grid_the_order_of_quantizing_and_merging_does_not_matter() -> None:
    quantizer = LogQuantizer(4, "published")
    quantizer.step = torch.tensor(0.4)
    maps = random_maps(1)
    outputs = [frozen_module(5, 0.4, 4, order=order)[0](maps, quantizer) for order in ("quantize-merge", "merge-quantize")]
    assert torch.allclose(*outputs, rtol=1e-6)


def test_own_grid_per_head_is_not_worse_than_the_layers() -> None:
    mean = random_maps(3, 1) * torch.tensor([1.0, 0.2, 0.05]).view(1, 3, 1, 1)
    mask = torch.ones_like(mean, dtype=torch.bool)
    layer = frozen_step(mean, mask, 4, "published", "layer", None)
    own = frozen_step(mean, mask, 4, "published", "head", None)
    assert float(layer.max()) == float(layer.min())
    errors = [
        float((torch.stack([fake_log(mean[0, h], s[h], 4, "published") for h in range(3)]) - mean[0]).square().sum()) for s in (layer, own)
    ]
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("renormalize", ["none", "mass", "renorm"])
@pytest.mark.parametrize("model_name", ["vitfrost_digits", "swin"])
@torch.no_grad()
def test_fused_and_skipped_heads_equal_the_explicit_reference(model_name: str, renormalize: str) -> None:
    """One head wholly frozen, one in part, the others computed: the same output as when every map is explicit."""
    if model_name == "swin":
        loaded = Model.open(
            "swin_tiny_patch4_window7_224",
            weights="random",
            image_size=56,
            options={"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 4)},
        )
        site_name = "layers.0.blocks.1.attn"
    else:
        loaded, site_name = Model.open("vitfrost_digits", weights="random"), "blocks.2.attn"
    model = copy.deepcopy(loaded.module)
    module = install_map_attention(model)[site_name]
    allowed = allowed_pairs(model, site_name)
    mask = torch.zeros(module.site.maps_shape, dtype=torch.bool)
    mask[:, 0] = True
    mask[:, 1] = torch.rand(mask[:, 1].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    if allowed is not None:
        mask &= allowed[:, None]
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) / module.site.keys * mask
    frozen = FrozenMaps(mask, allowed, 32, "published", renormalize=renormalize)
    frozen.set_values(values, None)
    module.freeze_entries(frozen)
    assert (frozen.constant_heads, frozen.partial_heads) == ([0], [1])
    pixels = torch.randn(2, 3, *loaded.image_size)
    split = model(pixels)
    module.observe(lambda maps, values: None)  # an observer makes every map explicit
    explicit = model(pixels)
    assert torch.allclose(split, explicit, atol=1e-5)
    assert not torch.equal(split, loaded.module(pixels))
