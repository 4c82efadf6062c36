"""A rotated model computes the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vitfrost.methods.quantize.rotate import can_rotate, rotate
from vitfrost.vit.families import find_sites, install_map_attention

from ...models import random_model

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
MODELS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_small_patch16_224": SMALL | {"qkv_bias": False},
    "deit3_small_patch16_224": SMALL,  # LayerScale
    "vit_tiny_patch16_224": SMALL | {"qk_norm": True, "reg_tokens": 2, "global_pool": "avg", "fc_norm": False},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("installed", [True, False])
def test_outputs_and_the_mean_of_the_stream_stay(name: str, installed: bool) -> None:
    model = random_model(name, 32, **MODELS[name]).module
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    model.blocks[0].norm1.weight[3] = 0.0
    turned = copy.deepcopy(model)
    sites = find_sites(turned)
    if installed:
        install_map_attention(turned)
    assert can_rotate(turned, sites)
    rotate(turned, sites, 0)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(turned(pixels), model(pixels), atol=1e-5, rtol=1e-5)
    seen: list[torch.Tensor] = []
    turned.blocks[1].register_forward_hook(lambda *args: seen.append(args[2]))
    turned(pixels)
    assert seen[0].mean(-1).abs().max() < 1e-5
    assert not torch.equal(turned.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
        ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "fc_norm": True}),
        ("vit_tiny_patch16_224", SMALL | {"num_classes": 0}),
    ],
)
def test_models_that_cannot_be_rotated(name: str, options: dict[str, Any]) -> None:
    model = random_model(name, 56 if "swin" in name else 32, **options).module
    sites = find_sites(model)
    assert not can_rotate(model, sites)
    with pytest.raises(ValueError, match="cannot be rotated"):
        rotate(model, sites, 0)
