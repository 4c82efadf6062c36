"""The run-time attention of PVT and Next-ViT against timm's, on square and other images, fused and with explicit maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitfrost.model import Model
from vitfrost.vit.families import find_sites, install_map_attention

SMALL: dict[str, Any] = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 5, 4), "num_classes": 7}
PVT1: dict[str, Any] = {**SMALL, "position_size": 64}
NEXT: dict[str, Any] = {"depths": (1, 1, 5, 1), "num_classes": 7}
# Next-ViT: 105 queries give 6 means of 16 and 1 of 64, the rest at the end is left out
MODELS = [
    ("vitfrost_pvt_tiny", PVT1, 64),
    ("vitfrost_pvt_tiny", PVT1, (76, 108)),
    ("pvt_v2_b0", SMALL, 64),
    ("pvt_v2_b0", SMALL, (96, 70)),
    ("pvt_v2_b2_li", SMALL, (64, 130)),
    ("nextvit_small", NEXT, 64),
    ("nextvit_small", NEXT, (56, 120)),
]


@pytest.mark.parametrize(("name", "options", "size"), MODELS)
@torch.no_grad()
def test_parity_with_timm(
    name: str, options: dict[str, Any], size: int | tuple[int, int], lively: Callable[..., None], pixels: Callable[..., Tensor]
) -> None:
    loaded = Model.open(name, weights="random", image_size=size, options=options)
    batch = pixels(loaded.image_size)
    lively(loaded.module, batch)
    expected = loaded.module(batch)
    tolerance = 1e-5 * float(expected.abs().max())
    assert 0.1 < float(expected.std()) < 10
    ours = copy.deepcopy(loaded.module)
    modules = install_map_attention(ours)
    assert float((ours(batch) - expected).abs().max()) < tolerance  # fused
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for site_name, module in modules.items():
        module.observe(lambda maps, values, site_name=site_name: seen.update({site_name: (maps, values)}))
    assert float((ours(batch) - expected).abs().max()) < tolerance  # explicit maps
    for site in find_sites(loaded.module).attention:
        maps, values = seen[site.name]
        assert maps.shape == (2, *site.maps_shape[1:])
        assert values.shape == (2, site.heads, site.keys, site.head_dim)
        assert float((maps.sum(-1) - 1).abs().max()) < 1e-5
        assert site.keys < 2 or float(maps.std(-1).mean()) > 0.05 / site.keys  # not even
    # the same modules at another resolution, which only the convolution of positions has to follow
    other = pixels((96, 128), seed=1)
    expected = loaded.module(other)
    assert float((ours(other) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "options"), [MODELS[number][:2] for number in (0, 2, 4, 5)])
def test_state_dict_survives_the_replacement(name: str, options: dict[str, Any]) -> None:
    model = Model.open(name, weights="random", image_size=64, options=options).module
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modules = install_map_attention(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert install_map_attention(model) == modules  # a second time changes nothing
    assert not any(module.training for module in model.modules())


@torch.no_grad()
def test_merged_normalizations_are_taken_over(lively: Callable[..., None], pixels: Callable[..., Tensor]) -> None:
    """Next-ViT's deployed form: BatchNorms merged into the layers after them, the keys' own one among them."""
    loaded = Model.open("nextvit_small", weights="random", image_size=64, options=NEXT)
    lively(loaded.module, pixels((64, 64)))
    for module in list(loaded.module.modules()):
        if hasattr(module, "reparameterize"):
            module.reparameterize()
    expected = loaded.module(pixels((64, 64)))
    install_map_attention(loaded.module)
    assert float((loaded.module(pixels((64, 64))) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_gradients_are_timms(lively: Callable[..., None], pixels: Callable[..., Tensor]) -> None:
    """Every parameter is trained as in the original."""
    for name, options in (MODELS[0][:2], MODELS[4][:2], MODELS[5][:2]):
        loaded = Model.open(name, weights="random", image_size=64, options=options)
        lively(loaded.module, pixels((64, 64)))
        ours = copy.deepcopy(loaded.module)
        install_map_attention(ours)
        for model in (loaded.module, ours):
            model.double()(pixels((64, 64)).double()).square().sum().backward()
        wanted = {key: parameter.grad for key, parameter in loaded.module.named_parameters()}
        for key, parameter in ours.named_parameters():
            assert torch.allclose(parameter.grad, wanted[key], rtol=1e-6, atol=1e-9), key  # a constant for all keys has none
            assert key.endswith(("k.bias", "kv.bias")) or float(parameter.grad.abs().max()) > 1e-6, key
